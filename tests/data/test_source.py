"""Sources: unreadable images are named, counted, and left out or replaced by the next of their class
and part."""

import logging

import numpy as np
import pytest
import torch

from mvar_models.data.open import open_images
from mvar_models.data.source import ImageSource

from odd_images import BROKEN, EMPTY, ODD, fill, plain_folder


@pytest.fixture
def mixed(tmp_path):
    return fill(tmp_path / "mixed")


def test_no_more_than_ten_thousand_are_held_out():
    class Many(ImageSource):
        fingerprint = name = read = None

    for count, expected in ((2_000, 500), (40_000, 10_000), (400_000, 10_000)):
        source = Many(np.arange(count) % 100, [str(label) for label in range(100)], False)
        train, val = source.train, source.held_out
        assert len(val) == expected
        assert len(train) + len(val) == count
        assert len(set(val % 100)) == 100


def test_a_mixed_folder_is_read_without_its_broken_images(mixed, caplog):
    source = open_images(mixed, 12)
    assert len(source) == len(ODD) + len(BROKEN) + 8, "an empty file is no example"
    assert source.skipped == {str(mixed / "odd" / EMPTY): "is empty (0 bytes)"}
    with caplog.at_level(logging.WARNING):
        images, kept = source.readable(np.arange(len(source)))
    assert len(images) == len(kept) == len(ODD) + 8
    assert {source.name(i).rsplit("/", 1)[1] for i in kept if source.labels[i] == 0} == set(ODD)
    problems = {name.rsplit("/", 1)[1]: reason for name, reason in source.problems().items()}
    assert set(problems) == {*BROKEN, EMPTY}
    assert all(problems[name].startswith(message) for name, (_, message) in BROKEN.items())
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == 5
    assert logged[-1].endswith("skipped (more are only counted)")


def test_all_problems_are_counted_in_one_line(mixed, caplog):
    source = open_images(mixed, 12)
    source.readable(np.arange(len(source)))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        source.log_problems()
    (record,) = caplog.records
    assert record.args[:2] == (len(BROKEN) + 1, len(ODD) + 8)
    assert EMPTY in record.getMessage()


@pytest.mark.parametrize("listed", [False, True], ids=["share held out", "held_out.txt"])
def test_a_stand_in_is_the_next_readable_image_of_the_same_class_and_part(mixed, listed):
    """Whatever was read before, the same image; a held-out one in a training batch would be a leak."""
    if listed:
        names = [*list(ODD)[::2], *list(BROKEN)[1::2]]
        (mixed / "held_out.txt").write_text("".join(f"odd/{name}\n" for name in names))
    first, second = open_images(mixed, 12), open_images(mixed, 12)
    names = [name.rsplit("/", 1)[1] for name in first.files]
    broken = np.array([names.index(name) for name in BROKEN])
    held_out = set(first.split.reserved.tolist())
    assert 0 < len(held_out & set(broken.tolist())) < len(broken), "both parts should have unreadable images"
    images = first.images(broken)
    size = len(ODD) + len(BROKEN)
    for index, image in zip(broken.tolist(), images):
        part = [i for i in range(size) if (i in held_out) == (index in held_out) and names[i] in ODD]
        after = min(part, key=lambda i: (i - index) % size)
        assert torch.equal(image, first.read(after))
    backwards = torch.cat([second.images(broken[[i]]) for i in reversed(range(len(broken)))])
    assert torch.equal(backwards, images.flip(0))


def test_a_class_without_readable_images_in_one_part(tmp_path):
    """A training class needs one; validation makes do with another class, never with a training image."""
    folder = plain_folder(tmp_path / "data")
    for name in ("red/1.png", "blue/0.png", "blue/1.png"):
        (folder / name).write_bytes(b"not an image")
    (folder / "held_out.txt").write_text("red/0.png\nblue/0.png\nblue/1.png\n")
    source = open_images(folder, 12)
    red = source.read(source.files.index(str(folder / "red" / "0.png")))
    assert torch.equal(source.images(source.held_out[:2]), torch.stack([red, red]))
    (folder / "red" / "0.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"no held-out image can be read \(3 tried; .*png is not an image"):
        open_images(folder, 12).images(source.held_out)
    (folder / "held_out.txt").write_text("red/2.png\n")
    with pytest.raises(
        ValueError, match=r"'red' has no training image .*\(2 tried; .*1\.png is not an image"
    ):
        open_images(folder, 12).images(np.array([3]))


def test_a_class_of_broken_images_is_named(tmp_path):
    folder = plain_folder(tmp_path / "data")
    (folder / "green").mkdir()
    (folder / "green" / "broken.png").write_bytes(b"not an image")
    source = open_images(folder, 12)
    green = np.flatnonzero(source.labels == source.class_names.index("green"))
    with pytest.raises(ValueError, match=r"'green' .*\(1 tried; .*broken\.png is not an image"):
        source.images(green)
