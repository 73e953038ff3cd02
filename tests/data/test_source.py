"""Sources of images: the split, fingerprints, unreadable images, and batches that are read ahead."""

import hashlib
import logging
import os
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from mvar_models.data.digits import Digits
from mvar_models.data.open import open_images
from mvar_models.data.source import ImageSource, Prefetcher, Split, content_fingerprint, make_split
from mvar_models.files import digest

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


def test_the_split_is_that_of_version_0_1():
    """Another split would validate 0.1.0's models on images that they were trained on."""
    labels = np.array([2, 1, 2, 2, 1, 2, 2, 0, 0, 0, 0, 2, 2, 0, 1, 2, 0, 2, 0, 1])
    split = make_split(labels, 3)
    assert split.train.tolist() == [0, 1, 2, 5, 6, 7, 8, 10, 11, 12, 14, 15, 16, 18, 19]
    assert split.held_out.tolist() == [3, 4, 9, 13, 17]
    digits = Digits(16)
    hashes = [
        hashlib.sha256(part.astype("<i8").tobytes()).hexdigest() for part in (digits.train, digits.held_out)
    ]
    assert [value[:16] for value in hashes] == ["6894de88bca2fa1b", "b5f40a368eb2b91e"]


def test_a_quarter_of_every_class_is_held_out():
    digits = Digits(16)
    assert sorted([*digits.train, *digits.held_out]) == list(range(1797))
    shares = np.bincount(digits.labels[digits.held_out]) / np.bincount(digits.labels)
    assert shares.min() > 0.23
    assert shares.max() < 0.27


def test_where_none_can_be_spared_validation_uses_the_training_examples(caplog):
    split = make_split(np.array([0]), 1)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert split.train.tolist() == split.held_out.tolist() == [0]
    assert split.reserved.tolist() == []
    assert len(caplog.records) == 1, "the warning is said once"
    assert caplog.records[0].args == (1,)


def test_flags_describe_a_split():
    split = Split.of_flags(np.array([True, False, False, True]))
    assert split.train.tolist() == [1, 2]
    assert split.held_out.tolist() == [0, 3]


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


PATIENCE = 30  # seconds


def test_an_announced_key_is_read_ahead_and_once():
    calls, ahead = [], threading.Event()

    def read(key):
        calls.append((key, threading.current_thread()))
        if key == 1:
            ahead.set()
        return 10 * key

    prefetcher = Prefetcher(read)
    assert prefetcher.get(0, following=1) == 0
    assert ahead.wait(PATIENCE), "key 1 should be read before anybody asks for it"
    assert prefetcher.get(1) == 10
    assert [key for key, _ in calls] == [0, 1]
    assert calls[0][1] is threading.current_thread()
    assert calls[1][1] is not threading.current_thread()
    prefetcher.close()


def test_a_key_that_was_passed_over_is_dropped():
    calls = []
    prefetcher = Prefetcher(lambda key: calls.append(key) or len(calls))
    prefetcher.get(0, following=1)
    prefetcher.get(5)
    prefetcher.get(1)
    prefetcher.close()
    assert calls.count(1) == 2


def test_an_error_is_raised_where_its_key_is_asked_for():
    def read(key):
        if key == 1:
            raise ValueError(f"key {key}")
        return key

    prefetcher = Prefetcher(read)
    assert prefetcher.get(0, following=1) == 0
    with pytest.raises(ValueError, match="key 1"):
        prefetcher.get(1)
    prefetcher.close()


def test_close_drops_what_has_not_begun():
    calls, threads, begun, release = [], [], threading.Event(), threading.Event()

    def read(key):
        calls.append(key)
        if key == 1:
            threads.append(threading.current_thread())
            begun.set()
            release.wait(PATIENCE)
        return key

    prefetcher = Prefetcher(read)
    prefetcher.get(0, following=1)
    assert begun.wait(PATIENCE)
    prefetcher.get(0, following=2)
    prefetcher.close()
    release.set()
    threads[0].join(PATIENCE)
    assert not threads[0].is_alive()
    assert calls == [0, 1, 0]
