"""The comparison of models with real images: equal numbers, equal classes, and what it leaves behind."""

import json

import numpy as np
import pytest
from PIL import Image

from script_cases import load_script

# As the model that draws calls them, in another order.
NAMES, EACH, HELD_OUT = ("one", "two", "zero"), 12, 4
CLASSES = len(NAMES)


@pytest.fixture(scope="module")
def script():
    return load_script("compare_models")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Classes of three colours, with noise."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    lines = []
    for label in range(CLASSES):
        (folder / f"{NAMES[label]}").mkdir()
        for i in range(EACH):
            pixels = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
            pixels[..., label] += 150
            Image.fromarray(pixels).save(folder / f"{NAMES[label]}" / f"{i:02}.png")
        lines += [f"{NAMES[label]}/{i:02}.png" for i in range(HELD_OUT)]
    (folder / "held_out.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def made(script, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    call = ["--data", str(data), "--model", "mvar-digits", "--seeds", "2", "--features", "pixels"]
    call += ["--blind", "6,3", "--out", str(out)]
    script.main(call)
    return out, call


def test_real_images_agree_and_digits_do_not(made):
    out, _ = made
    rows = json.loads((out / "scores.json").read_text())
    assert [(row["set"], row["seed"]) for row in rows] == [
        (name, seed) for name in ("real", "reconstructed", "mvar-digits") for seed in (0, 1)
    ]
    by_set = {row["set"]: row for row in rows if row["seed"] == 0}
    assert by_set["real"]["label_agreement"] == 1
    assert by_set["real"]["class_diversity"] == pytest.approx(1, abs=0.1)
    assert by_set["real"]["recall"] == 1
    assert by_set["mvar-digits"]["recall"] == 0
    assert by_set["real"]["fd"] < by_set["mvar-digits"]["fd"] / 10
    # Other images are drawn with another seed, and the training images are drawn anew.
    for name in ("real", "mvar-digits"):
        assert len({row["fd"] for row in rows if row["set"] == name}) == 2
    text = (out / "scores.md").read_text()
    assert text.startswith(f"{CLASSES * HELD_OUT} images a set, means over 2 seeds")
    assert "| mvar-digits | " in text


def test_sheets(made):
    out, _ = made
    with Image.open(out / "blind.png") as sheet:
        assert sheet.width > 9 * 64
    key = json.loads((out / "blind.json").read_text())
    assert [entry["number"] for entry in key] == list(range(9))
    drawn = [entry["class"] for entry in key if entry["kind"] == "drawn"]
    assert sorted(drawn) == sorted(2 * [f"{NAMES[label]}" for label in range(CLASSES)])
    assert (out / "mvar-digits" / "neighbours.png").is_file()


def test_drawn_images_are_kept_but_not_for_other_weights(script, made):
    out, call = made
    file = out / "mvar-digits" / "drawn-0.npz"
    before = file.stat().st_mtime_ns
    script.main(call)
    assert file.stat().st_mtime_ns == before
    call = [part if part != "mvar-digits" else "var-digits" for part in call]
    with pytest.raises(ValueError, match="made with other settings"):
        script.main(call)


def test_data_must_have_classes_and_held_out_images(script, data, tmp_path):
    call = ["--model", "mvar-digits", "--features", "pixels", "--data", str(data / "one")]
    with pytest.raises(SystemExit, match="two classes or more"):
        script.main([*call, "--out", str(tmp_path)])
