"""Sources: unreadable images are named, counted, and left out or replaced by the next of their class."""

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


def test_a_replacement_is_the_next_readable_image_of_the_class(mixed):
    """Whatever was read before, the same image replaces an unreadable one."""
    first, second = open_images(mixed, 12), open_images(mixed, 12)
    names = [name.rsplit("/", 1)[1] for name in first.files]
    broken = np.array([names.index(name) for name in BROKEN])
    images = first.images(broken)
    for index, image in zip(broken, images):
        after = next(i for i in [*range(index, len(ODD) + len(BROKEN)), *range(index)] if names[i] in ODD)
        assert torch.equal(image, first.read(after))
    backwards = torch.cat([second.images(broken[[i]]) for i in reversed(range(len(broken)))])
    assert torch.equal(backwards, images.flip(0))


def test_a_class_of_broken_images_is_named(tmp_path):
    folder = plain_folder(tmp_path / "data")
    (folder / "green").mkdir()
    (folder / "green" / "broken.png").write_bytes(b"not an image")
    source = open_images(folder, 12)
    green = np.flatnonzero(source.labels == source.class_names.index("green"))
    with pytest.raises(ValueError, match=r"'green' .*\(1 tried; .*broken\.png is not an image"):
        source.images(green)
