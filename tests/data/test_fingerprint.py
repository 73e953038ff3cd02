"""Fingerprints: fixed by the list of examples alone, and the same in every version."""

import os

import numpy as np
import pytest
from PIL import Image

from mvar_models.data.digits import Digits
from mvar_models.data.open import open_images
from mvar_models.data.source import content_fingerprint
from mvar_models.files import digest

from odd_images import plain_folder

EXAMPLES = {
    "class_names": ["a", "b"],
    "labels": np.array([0, 1]),
    "names": ["a/x.png", "b/y.png"],
    "sizes": np.array([10, 300]),
}


def test_fingerprints_change_with_the_list_of_examples(tmp_path):
    folder = plain_folder(tmp_path / "data")
    first = open_images(folder, 16).fingerprint
    assert first == open_images(folder, 32).fingerprint, "the resolution does not matter"
    copy = plain_folder(tmp_path / "copy")
    assert first == open_images(copy, 16).fingerprint, "the place does not matter"
    seen = {first}

    def changed():
        seen.add(open_images(folder, 16).fingerprint)
        return len(seen)

    (folder / "red" / "0.png").rename(folder / "blue" / "9.png")
    assert changed() == 2, "another label"
    (folder / "blue" / "9.png").rename(folder / "blue" / "8.png")
    assert changed() == 3, "another name"
    Image.new("RGB", (200, 100), "blue").save(folder / "blue" / "8.png")
    assert changed() == 4, "another size"
    (folder / "blue").rename(folder / "azure")
    assert changed() == 5, "another class name"
    assert Digits(16).fingerprint == Digits(32).fingerprint


def test_stamps_and_content_tell_images_that_were_changed_in_place(tmp_path):
    """Uncompressed ones keep their size to the byte."""
    file = plain_folder(tmp_path / "data") / "red" / "x.bmp"
    Image.new("RGB", (9, 9), "red").save(file)
    os.utime(file, (1e9, 1e9))

    def seen():
        source = open_images(tmp_path / "data", 16)
        return source.fingerprint, source.stamps.tolist(), source.content(np.arange(len(source)))

    first = seen()
    os.utime(file, (2e9, 2e9))
    copied = seen()
    assert [a == b for a, b in zip(first, copied)] == [True, False, True]
    Image.new("RGB", (9, 9), "blue").save(file)
    edited = seen()
    assert [a == b for a, b in zip(copied, edited)] == [True, False, False]
    source = open_images(tmp_path / "data", 16)
    assert source.content(np.arange(3)) != source.content(np.arange(2))
    file.unlink()
    assert source.content(np.arange(len(source))) not in (first[2], edited[2])
    assert not Digits(16).stamps.any(), "they cannot change"


def test_fingerprints_stay_the_same():
    """Token folders hold them: another value would no longer find the data that was encoded."""
    assert content_fingerprint(**EXAMPLES) == "c0e26bffe87d7edf"
    assert Digits(16).fingerprint == "8b09f08b758f29ac"


@pytest.mark.parametrize(
    "argument, value",
    [
        ("class_names", ["a", "c"]),
        ("labels", np.array([1, 0])),
        ("names", ["a/x.png", "b/z.png"]),
        ("sizes", np.array([10, 301])),
    ],
)
def test_each_argument_counts(argument, value):
    assert content_fingerprint(**{**EXAMPLES, argument: value}) != content_fingerprint(**EXAMPLES)


def test_the_borders_between_parts_count():
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("ab") == digest(b"ab")


def test_names_need_not_be_valid_utf_8():
    assert digest("\udcff.png") == digest(b"\xff.png")
