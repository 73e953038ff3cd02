"""The command sample: files, npz, and folders that are continued."""

import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mvar_models import MVARPipeline
from mvar_models.cli.main import main
from mvar_models.cli.sample import default_labels
from mvar_models.cli.samples_folder import RECORD, Samples, images_of, read_samples, write_samples
from mvar_models.files import FolderInUse, held
from mvar_models.sampling.settings import SamplingSettings

from command_cases import mvar
from fork_cases import fork_pair
from tiny_models import NAMES, tiny_mvar, tiny_vqvae

SAMPLE = "sample --model mvar-digits"


def record_of(folder):
    return json.loads((folder / "samples.json").read_text())


def test_images_are_those_of_the_pipeline(tmp_path):
    result = mvar(f"{SAMPLE} --labels 7,three --n 2 --seed 5 -o", tmp_path)
    assert result.exit_code == 0, result.output
    record = record_of(tmp_path)
    assert [image["name"] for image in record["images"]] == ["seven", "seven", "three", "three"]
    assert [image["seed"] for image in record["images"]] == [5, 6, 7, 8]
    third = record["images"][2]
    pipeline = MVARPipeline.from_pretrained("mvar-digits")
    again = pipeline([third["label"]], seed=third["seed"], output_type="np").images[0]
    assert np.array_equal(np.array(Image.open(tmp_path / third["file"])), again)
    assert Image.open(tmp_path / "grid.png").size == (66, 66)


def test_again_draws_the_same_bytes(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    options = "--labels 7,three --n 2 --seed 5 --guidance-scale 2.5 --top-k 40 --sampler smooth"
    assert mvar(f"{SAMPLE} {options} -o", first).exit_code == 0
    result = mvar("sample --again", first / "samples.json", "-o", second)
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in first.glob("0*.png"))
    assert len(names) == 4
    assert sorted(path.name for path in second.glob("0*.png")) == names
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    record = record_of(second)
    assert record["settings"] == SamplingSettings(2.5, 40, 0.96, sampler="smooth").to_dict()
    assert record["again"] == f"mvar sample --again {second / 'samples.json'}"
    assert record["versions"]["torch"]


def test_compiled_or_not_the_images_are_the_same(tmp_path):
    """So the record does not have it, and it may be given with --again."""
    first, second, third = (tmp_path / name for name in "abc")
    assert mvar(f"{SAMPLE} --labels 7 --n 2 -o", first).exit_code == 0
    assert mvar(f"{SAMPLE} --labels 7 --n 2 --compile -o", second).exit_code == 0
    assert mvar("sample --compile --again", first / "samples.json", "-o", third).exit_code == 0
    for name in ("00000_seven.png", "00001_seven.png"):
        assert (first / name).read_bytes() == (second / name).read_bytes() == (third / name).read_bytes()
    records = [record_of(folder) for folder in (first, second)]
    assert records[0]["settings"] == records[1]["settings"]


def test_a_sampler_by_name(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    assert mvar(f"{SAMPLE} --labels 7 --n 1 --sampler smooth -o", first).exit_code == 0
    assert record_of(first)["settings"]["sampler"] == "smooth"
    assert mvar("sample --again", first / "samples.json", "-o", second).exit_code == 0
    assert (first / "00000_seven.png").read_bytes() == (second / "00000_seven.png").read_bytes()


def test_again_takes_the_batch_size_too(tmp_path):
    """On a GPU the last bits of an image depend on it."""
    first = tmp_path / "a" / "samples.json"

    def recorded(folder, options, *more):
        assert mvar(f"sample {options}", *more, "-o", tmp_path / folder).exit_code == 0
        return record_of(tmp_path / folder)["batch_size"]

    assert recorded("a", "--model mvar-digits --labels 7 --n 2 --batch-size 3") == 3
    assert recorded("b", "--again", first) == 3
    assert recorded("c", "--batch-size 1 --again", first) == 1


def test_a_record_without_a_batch_size_is_read(tmp_path):
    assert mvar(f"{SAMPLE} --labels 7 --n 1 -o", tmp_path / "a").exit_code == 0
    path = tmp_path / "a" / "samples.json"
    record = json.loads(path.read_text())
    del record["batch_size"]
    path.write_text(json.dumps(record))
    assert mvar("sample --again", path, "-o", tmp_path / "b").exit_code == 0
    assert record_of(tmp_path / "b")["batch_size"] == 32


def test_another_file_is_no_record(tmp_path):
    path = tmp_path / "index.json"
    path.write_text('{"images": 3}')
    result = mvar("sample --again", path, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert str(path) in result.output
    assert not (tmp_path / "out").exists()


def test_default_labels():
    assert default_labels(3) == [0, 1, 2]
    assert default_labels(10) == list(range(10))
    assert default_labels(1000) == list(range(0, 1000, 100))


def test_npz(tmp_path):
    path = tmp_path / "fid.npz"
    command = f"{SAMPLE} --per-class 1 --batch-size 5 --npz"
    result = mvar(command, path)
    assert result.exit_code == 0, result.output
    assert f"10 images in {path}" in result.output
    with np.load(path) as values:
        assert values["arr_0"].shape == (10, 32, 32, 3)
    written = path.stat().st_mtime_ns
    assert mvar(command, path).exit_code == 0
    assert path.stat().st_mtime_ns == written, "a finished file is left alone"
    result = mvar(command, path, "--seed", 1)
    assert result.exit_code == 1
    assert "settings" in result.output


def test_a_text_file_is_told_from_a_checkpoint(tmp_path):
    notes = tmp_path / "notes.pth"
    notes.write_text("to do\n")
    result = mvar("sample --model", notes, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert f"{notes} is a text file" in result.output


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
    assert files == [f"{index:05d}_{NAMES[label]}.png" for index, label in enumerate(LABELS)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*files, "grid.png", RECORD]
    drawn = pipeline(LABELS, seed=SEED, batch_size=2, **SETTINGS.to_dict())
    for file, image in zip(files, drawn):
        assert Image.open(tmp_path / file).tobytes() == image.tobytes(), file


def test_images_of_an_earlier_call_do_not_stay_among_those_of_this_one(pipeline, tmp_path):
    write_samples(pipeline, SAMPLES, tmp_path, columns=2)
    (tmp_path / "00000_7.png").write_bytes(b"of somebody else")
    write_samples(pipeline, replace(SAMPLES, images=images_of([1], 0, NAMES)), tmp_path, columns=2)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"00000_{NAMES[1]}.png", "00000_7.png", "grid.png", RECORD}
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


@pytest.mark.parametrize("seeds, said", [("11", ""), ("12", "--seed|seed")])
def test_processes_of_an_npz_compare_what_they_were_started_with(tmp_path, seeds, said):
    """With other seeds each would wait for parts that nobody samples, or mix them."""
    outputs = [tmp_path / f"rank-{rank}.txt" for rank in (0, 1)]

    def work():
        seed = seeds[int(os.environ["RANK"])]
        file = str(tmp_path / "fid.npz")
        main([*f"{SAMPLE} --per-class 1 --batch-size 5 --seed {seed} --npz".split(), file])

    pair = fork_pair(work, outputs)
    printed = [process.communicate() for process in pair]
    assert [process.returncode for process in pair] == ([1, 1] if said else [0, 0]), printed
    assert (tmp_path / "fid.npz").exists() == (not said)
    assert re.search(said, "".join(printed)), printed
    if not said:
        assert [text.count("10 images in") for text in printed] == [1, 0]
