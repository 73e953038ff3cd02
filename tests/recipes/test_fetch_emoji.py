"""Folders of emoji: classes by subcategory where it is large, and variants of training emoji alone."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from script_cases import load_script

# (code points, subcategory): nine fruits are a class of their own, two drinks are food and drink.
EMOJI = [*((f"1f34{i}", "food-fruit") for i in range(9)), ("1f375", "drink"), ("1f376", "drink")]


@pytest.fixture(scope="module")
def script():
    return load_script("fetch_emoji")


def archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def image(kind):
    stream = io.BytesIO()
    pixels = np.zeros((72, 72, 4), dtype=np.uint8)
    pixels[16:40, 20:60] = (200, 30, 60, 255)  # on a transparent ground, and no mirror of itself
    pixels[40:56, 20:30] = (20, 90, 60, 255)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


@pytest.fixture(scope="module")
def laid(script, tmp_path_factory):
    """The laid out folder and its held-out files."""
    folder = tmp_path_factory.mktemp("emoji")
    rows = [
        {"unified": code.upper(), "category": "Food & Drink", "subcategory": kind,
         "skin_variations": {"1F3FB": {"unified": f"{code.upper()}-1F3FB"}}}
        for code, kind in EMOJI
    ]  # fmt: skip
    codes = [code + tone for code, _ in EMOJI for tone in ("", "-1f3fb")]
    images = {f"package/img/google/64/{code}.png": image("PNG") for code in codes}
    table = {script.TABLE: json.dumps(rows).encode()}
    archives = {
        script.NOTO: archive(folder / "noto.tgz", {**table, **images}),
        script.FLUENT: archive(
            folder / "fluent.tgz", {f"package/assets/{code}.webp": image("WEBP") for code in codes}
        ),
    }
    held_out = script.lay_out(archives, folder / "out", skin_tones=True, mirrors=True, shifts=2, fine=True)
    return folder / "out", held_out


def test_small_subcategories_join_their_category(laid):
    folder, _ = laid
    assert {path.name for path in folder.iterdir()} == {
        f"{style}-{name}" for style in ("fluent", "noto") for name in ("food-fruit", "food-drink")
    }


def test_held_out_emoji_have_no_variant_in_training(laid):
    folder, held_out = laid
    bases = {name.rpartition("/")[2].removesuffix(".png") for name in held_out}
    assert bases and len(held_out) == 2 * len(bases)  # in both styles
    files = {path.relative_to(folder).as_posix() for path in folder.glob("*/*.png")}
    assert {name for name in files if any(f"/{base}" in name for base in bases)} == set(held_out)
    kept = next(code for code, kind in EMOJI if kind == "food-fruit" and code not in bases)
    shifts = ("", ".shift1", ".shift2")
    suffixes = [*shifts, *(f".mirror{shift}" for shift in shifts), "-1f3fb", "-1f3fb.mirror"]
    assert {name for name in files if f"/{kept}" in name and "noto" in name} == {
        f"noto-food-fruit/{kept}{suffix}.png" for suffix in suffixes
    }


def test_shifts_move_the_image_on_white_by_few_pixels(script):
    pixels = np.full((64, 64, 3), 255, dtype=np.uint8)
    pixels[20:40, 10:30] = 0
    for seed in range(20):
        moved = np.asarray(script.shifted(Image.fromarray(pixels), np.random.default_rng(seed)))
        rows, columns = (np.flatnonzero((moved == 0).any((axis, 2))) for axis in (1, 0))
        assert abs(rows[0] - 20) <= script.FARTHEST_SHIFT and abs(columns[0] - 10) <= script.FARTHEST_SHIFT
        assert (moved == 0).sum() == (pixels == 0).sum() and moved.shape == pixels.shape
