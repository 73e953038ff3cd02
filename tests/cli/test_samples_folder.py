"""The folder of samples: what is recorded reads back, and a record means that all images are there."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from mvar_models import MVARPipeline
from mvar_models.cli.samples_folder import RECORD, Sampling, read_samples, write_samples

from tiny_models import NAMES, tiny_mvar, tiny_vqvae

SAMPLING = Sampling(
    model="some/model",
    arch="mvar",
    vqvae=None,
    dtype="float32",
    options={"top_k": 4},
    labels=[2, 0, 1],
    seeds=[7, 8, 9],
    batch_size=2,
)


@pytest.fixture
def pipeline():
    return MVARPipeline(tiny_mvar(), tiny_vqvae())


def test_a_record_reads_back(pipeline, tmp_path):
    assert write_samples(pipeline, SAMPLING, tmp_path, columns=2) == 3
    assert read_samples(tmp_path / RECORD) == SAMPLING


def test_files_and_names_follow_the_labels(pipeline, tmp_path):
    write_samples(pipeline, SAMPLING, tmp_path, columns=2)
    images = json.loads((tmp_path / RECORD).read_text())["pictures"]
    assert [image["name"] for image in images] == [NAMES[label] for label in SAMPLING.labels]
    files = [image["file"] for image in images]
    assert files == ["00000_2.png", "00001_0.png", "00002_1.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*files, "grid.png", RECORD]
    drawn = pipeline(SAMPLING.labels, seed=SAMPLING.seeds, batch_size=2, top_k=4)
    for file, image in zip(files, drawn):
        assert Image.open(tmp_path / file).tobytes() == image.tobytes(), file


def test_images_of_an_earlier_call_do_not_stay_among_those_of_this_one(pipeline, tmp_path):
    write_samples(pipeline, SAMPLING, tmp_path, columns=2)
    (tmp_path / "00000_7.png").write_bytes(b"of somebody else")
    write_samples(pipeline, replace(SAMPLING, labels=[1], seeds=[0]), tmp_path, columns=2)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"00000_1.png", "00000_7.png", "grid.png", RECORD}
    record = json.loads((tmp_path / RECORD).read_text())
    record["pictures"][0]["file"] = "holiday.png"
    (tmp_path / RECORD).write_text(json.dumps(record))
    (tmp_path / "holiday.png").write_bytes(b"no image of ours")
    write_samples(pipeline, SAMPLING, tmp_path, columns=2)
    assert (tmp_path / "holiday.png").exists()


def test_a_failure_leaves_no_record_of_an_earlier_folder(pipeline, tmp_path):
    write_samples(pipeline, SAMPLING, tmp_path, columns=2)

    def fails_at_the_second_batch(labels, **options):
        if labels == [1]:
            raise MemoryError
        return pipeline(labels, **options)

    fails_at_the_second_batch.model = pipeline.model
    with pytest.raises(MemoryError):
        write_samples(fails_at_the_second_batch, SAMPLING, tmp_path, columns=2)
    assert not (tmp_path / RECORD).exists()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"pictures": [{"label": 1}]}'])
def test_another_file_is_named(tmp_path, text):
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(ValueError, match=RECORD.replace(".", r"\.")):
        read_samples(tmp_path / RECORD)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"labels": 3, "pictures": [{"file": "a.png", "label": "7", "seed": 0}]}, r"pictures\[0\]\.label"),
        ({"pictures": [{"file": "../a.png", "label": 7, "seed": 0}]}, r"pictures\[0\]\.file"),
        ({"pictures": [{"file": "a.png", "label": 7, "seed": -1}]}, r"pictures\[0\]\.seed .* got -1"),
        ({"pictures": []}, "pictures must be a list of at least one image"),
        ({"dtype": "complex64"}, "dtype must be one of"),
        ({"options": {"colour": 1}}, "options has entries this version does not know: colour"),
        ({"options": {"top_k": "4"}}, r"options\.top_k must be a whole number, got '4'"),
        ({"batch_size": 0}, "batch_size"),
        ({"model": ["a"]}, "model must be text"),
    ],
)
def test_a_changed_record_is_named(pipeline, tmp_path, change, said):
    write_samples(pipeline, SAMPLING, tmp_path, columns=2)
    path = tmp_path / RECORD
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=rf"samples\.json: {said}"):
        read_samples(path)
