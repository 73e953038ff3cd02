"""The folder of samples: what is recorded reads back, and a record means that all images are there."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from mvar_models import MVARPipeline
from mvar_models.cli.samples_folder import RECORD, Samples, images_of, read_samples, write_samples
from mvar_models.files import FolderInUse, held
from mvar_models.sampling.settings import SamplingSettings

from tiny_models import NAMES, tiny_mvar, tiny_vqvae

SETTINGS = SamplingSettings(guidance_scale=2.0, top_k=4, top_p=0.9, guidance_schedule="cosine")
LABELS, SEED = [2, 0, 1], 7
SAMPLES = Samples(
    model="some/model",
    arch="mvar",
    vqvae=None,
    dtype="float32",
    settings=SETTINGS,
    images=images_of(LABELS, SEED, NAMES),
    batch_size=2,
)


@pytest.fixture
def pipeline():
    return MVARPipeline(tiny_mvar(), tiny_vqvae())


def test_a_record_reads_back(pipeline, tmp_path):
    written = write_samples(pipeline, SAMPLES, tmp_path, columns=2)
    found = read_samples(tmp_path / RECORD)
    assert replace(found, images=list(found.images)) == written
    assert (written.settings, written.images) == (SETTINGS, SAMPLES.images)
    assert written.model_weights and written.versions.torch


def test_files_and_names_follow_the_labels(pipeline, tmp_path):
    write_samples(pipeline, SAMPLES, tmp_path, columns=2)
    images = json.loads((tmp_path / RECORD).read_text())["images"]
    assert [image["name"] for image in images] == [NAMES[label] for label in LABELS]
    files = [image["file"] for image in images]
    assert files == ["00000_2.png", "00001_0.png", "00002_1.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*files, "grid.png", RECORD]
    drawn = pipeline(LABELS, seed=SEED, batch_size=2, **SETTINGS.to_dict())
    for file, image in zip(files, drawn):
        assert Image.open(tmp_path / file).tobytes() == image.tobytes(), file


def test_images_of_an_earlier_call_do_not_stay_among_those_of_this_one(pipeline, tmp_path):
    write_samples(pipeline, SAMPLES, tmp_path, columns=2)
    (tmp_path / "00000_7.png").write_bytes(b"of somebody else")
    write_samples(pipeline, replace(SAMPLES, images=images_of([1], 0, NAMES)), tmp_path, columns=2)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"00000_1.png", "00000_7.png", "grid.png", RECORD}
    record = json.loads((tmp_path / RECORD).read_text())
    record["images"][0]["file"] = "holiday.png"
    (tmp_path / RECORD).write_text(json.dumps(record))
    (tmp_path / "holiday.png").write_bytes(b"no image of ours")
    write_samples(pipeline, SAMPLES, tmp_path, columns=2)
    assert (tmp_path / "holiday.png").exists()


def test_a_failure_leaves_no_record_of_an_earlier_folder(pipeline, tmp_path):
    write_samples(pipeline, SAMPLES, tmp_path, columns=2)

    def fails_at_the_second_batch(labels, **options):
        if labels == [1]:
            raise MemoryError
        return pipeline(labels, **options)

    fails_at_the_second_batch.model = pipeline.model
    with pytest.raises(MemoryError):
        write_samples(fails_at_the_second_batch, SAMPLES, tmp_path, columns=2)
    assert not (tmp_path / RECORD).exists()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"images": [{"label": 1}]}'])
def test_another_file_is_named(tmp_path, text):
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(ValueError, match=RECORD.replace(".", r"\.")):
        read_samples(tmp_path / RECORD)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"labels": 3, "images": [{"file": "a.png", "label": "7", "seed": 0}]}, r"images\[0\]\.label"),
        ({"images": [{"file": "../a.png", "label": 7, "seed": 0}]}, r"images\[0\]\.file"),
        ({"images": [{"file": "a.png", "label": 7, "seed": -1}]}, r"images\[0\]\.seed .* got -1"),
        ({"images": []}, "images must be a list of at least one image"),
        ({"dtype": "complex64"}, "dtype must be one of"),
        ({"settings": {**SETTINGS.to_dict(), "colour": 1}}, "settings has entries .* not know: colour"),
        (
            {"settings": {**SETTINGS.to_dict(), "top_k": "4"}},
            r"settings\.top_k must be a whole number, got '4'",
        ),
        ({"batch_size": 0}, "batch_size"),
        ({"model": ["a"]}, "model must be text"),
    ],
)
def test_a_changed_record_is_named(pipeline, tmp_path, change, said):
    write_samples(pipeline, SAMPLES, tmp_path, columns=2)
    path = tmp_path / RECORD
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=rf"samples\.json: {said}"):
        read_samples(path)


def test_two_commands_do_not_write_into_one_folder(pipeline, tmp_path):
    """The second would remove the first's images while they appear."""
    write_samples(pipeline, SAMPLES, tmp_path, columns=2)
    with held(tmp_path, "is writing samples"):
        with pytest.raises(FolderInUse, match=r"is in use: process .* is writing samples"):
            write_samples(pipeline, SAMPLES, tmp_path, columns=2)
        assert len(list(tmp_path.glob("0*.png"))) == 3
    assert write_samples(pipeline, SAMPLES, tmp_path, columns=2).images
