"""`mvar sample`: images, the record that draws them again, and the file for FID programs."""

import json

import numpy as np
from PIL import Image

from mvar_models import MVARPipeline
from mvar_models.cli.sample import default_labels

from command_cases import mvar

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
    again = pipeline([third["label"]], seed=third["seed"], output_type="np")[0]
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
    assert record["settings"] == {
        "guidance_scale": 2.5,
        "top_k": 40,
        "top_p": 0.96,
        "guidance_schedule": "linear",
        "sampler": "smooth",
    }
    assert record["again"] == f"mvar sample --again {second / 'samples.json'}"
    assert record["versions"]["torch"]


def test_compiled_or_not_the_images_are_the_same(tmp_path):
    """So the record does not have it, and it may be given with --again."""
    first, second, third = (tmp_path / name for name in "abc")
    assert mvar(f"{SAMPLE} --labels 7 --n 2 -o", first).exit_code == 0
    assert mvar(f"{SAMPLE} --labels 7 --n 2 --compile -o", second).exit_code == 0
    assert mvar("sample --compile --again", first / "samples.json", "-o", third).exit_code == 0
    for name in ("00000_7.png", "00001_7.png"):
        assert (first / name).read_bytes() == (second / name).read_bytes() == (third / name).read_bytes()
    records = [record_of(folder) for folder in (first, second)]
    assert records[0]["settings"] == records[1]["settings"]


def test_a_sampler_by_name(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    assert mvar(f"{SAMPLE} --labels 7 --n 1 --sampler smooth -o", first).exit_code == 0
    assert record_of(first)["settings"]["sampler"] == "smooth"
    assert mvar("sample --again", first / "samples.json", "-o", second).exit_code == 0
    assert (first / "00000_7.png").read_bytes() == (second / "00000_7.png").read_bytes()


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


def test_a_run_folder_and_a_text_file_are_told_from_checkpoints(tmp_path):
    run, notes = tmp_path / "run", tmp_path / "notes.pth"
    MVARPipeline.from_pretrained("mvar-digits").save_pretrained(run / "model")
    result = mvar("sample --model", run, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert f"its model is {run / 'model'}" in result.output
    notes.write_text("to do\n")
    result = mvar("sample --model", notes, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert f"{notes} is a text file" in result.output
