"""Data: splits are pure functions.

Every odd picture works, every broken one is named, left out and counted; parquet equals folders.
"""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from mvar_models.data.decode import UnreadableImage, center_crop, load_image
from mvar_models.data.digits import Digits
from mvar_models.data.folders import ClassFolders
from mvar_models.data.open import open_images
from mvar_models.data.source import ImageSource
from mvar_models.images import to_pil

from odd_images import BROKEN, EMPTY, ODD, encoded, fill


@pytest.fixture(scope="module")
def digits():
    return Digits(32)


@pytest.fixture
def mixed(tmp_path):
    return fill(tmp_path / "mixed")


def plain_folder(folder, classes=("blue", "red"), count=3):
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (20 + index, 16), name).save(folder / name / f"{index}.png")
    return folder


def test_split_is_fixed_disjoint_and_balanced(digits):
    train, val = digits.train, digits.held_out
    again = Digits(32)
    assert np.array_equal(train, again.train) and np.array_equal(val, again.held_out)
    assert sorted([*train, *val]) == list(range(1797)) and 0.2 <= len(val) / 1797 <= 1 / 3
    shares = np.bincount(digits.labels[val]) / np.bincount(digits.labels)
    assert shares.min() > 0.23 and shares.max() < 0.27


def test_no_more_than_ten_thousand_are_held_out():
    class Many(ImageSource):
        fingerprint = name = read = None

    for count, expected in ((2_000, 500), (40_000, 10_000), (400_000, 10_000)):
        source = Many(np.arange(count) % 100, [str(label) for label in range(100)], False)
        train, val = source.train, source.held_out
        assert len(val) == expected and len(train) + len(val) == count and len(set(val % 100)) == 100


def test_digits_are_those_of_scikit_learn(digits):
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = digits.images(np.arange(5))
    assert images.shape == (5, 3, 32, 32) and -1 <= images.min() and images.max() <= 1
    pooled = (images.mean(1).reshape(5, 8, 4, 8, 4).mean((2, 4)) + 1) * 8
    assert np.corrcoef(pooled.numpy().ravel(), raw.images[:5].ravel())[0, 1] > 0.97
    assert digits.class_names[raw.target[3]] == "three"


@pytest.mark.parametrize("name", ODD)
def test_odd_images_work(name, tmp_path):
    """Grey levels left and right of the middle are those that were stored: nothing is clipped, inverted,
    mirrored or left lying.
    """
    content, expected = ODD[name]
    (tmp_path / name).write_bytes(content)
    for source in (content, tmp_path / name):
        image = (load_image(source, 12) + 1) * 127.5
        assert image.shape == (3, 12, 12)
        found = image[:, :, 1].mean().item(), image[:, :, -2].mean().item()
        assert found == pytest.approx(expected, abs=8)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_pictures_say_why(name, tmp_path):
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableImage) as found:
        load_image(tmp_path / name, 12)
    assert str(found.value).startswith(message) and "\n" not in str(found.value)


def test_empty_and_unreadable_files(tmp_path):
    with pytest.raises(UnreadableImage, match=r"is empty \(0 bytes\)"):
        load_image(b"", 12)
    with pytest.raises(UnreadableImage, match="cannot be opened: No such file"):
        load_image(tmp_path / "gone.png", 12)


def test_a_mixed_folder_is_read_without_its_broken_pictures(mixed, caplog):
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
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 5 and told[-1].endswith("skipped (more are only counted)")


def test_a_stand_in_is_the_next_readable_picture_of_the_class(mixed):
    """Whatever was read before: the same picture stands in."""
    first, second = open_images(mixed, 12), open_images(mixed, 12)
    names = [name.rsplit("/", 1)[1] for name in first.files]
    broken = np.array([names.index(name) for name in BROKEN])
    images = first.images(broken)
    for index, image in zip(broken, images):
        after = next(i for i in [*range(index, len(ODD) + len(BROKEN)), *range(index)] if names[i] in ODD)
        assert torch.equal(image, first.read(after))
    assert torch.equal(
        torch.cat([second.images(broken[[i]]) for i in reversed(range(len(broken)))]), images.flip(0)
    )


def test_a_class_of_broken_pictures_is_named(tmp_path):
    folder = plain_folder(tmp_path / "data")
    (folder / "green").mkdir()
    (folder / "green" / "broken.png").write_bytes(b"not a picture")
    source = open_images(folder, 12)
    with pytest.raises(
        ValueError,
        match=r"class 'green' has no image that can be read \(1 tried; .*broken\.png is not an image",
    ):
        source.images(np.flatnonzero(source.labels == source.class_names.index("green")))


def test_class_folders(tmp_path):
    folder = plain_folder(tmp_path / "data")
    (folder / "red" / "deeper").mkdir()
    Image.new("RGB", (9, 9), "red").save(folder / "red" / "deeper" / "x.webp", lossless=True)
    (folder / "red" / "._0.png").write_bytes(b"what macOS leaves")
    (folder / "red" / "notes.txt").write_text("not a picture")
    (folder / "loose.png").write_bytes(encoded(Image.new("RGB", (9, 9))))
    (folder / "blue" / "nowhere.png").symlink_to(tmp_path / "nowhere.png")
    source = open_images(folder, 16)
    assert isinstance(source, ClassFolders) and source.class_names == ("blue", "red") and source.mirror_safe
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    images = source.images(np.arange(7))
    assert images.shape == (7, 3, 16, 16)
    assert torch.equal(images[0, :, 0, 0], torch.tensor([-1.0, -1.0, 1.0])) and torch.equal(
        images[6, :, 9, 9], torch.tensor([1.0, -1.0, -1.0])
    )
    reasons = list(source.skipped.values())
    assert reasons[0] == "is a link to nothing" and reasons[1].startswith(
        "has 1 images outside the class folders"
    )
    assert list(source.skipped)[2] == "1 files" and reasons[2].startswith("do not end in .bmp")


def test_folders_that_hold_no_dataset_say_why(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(
        ValueError, match="none has no class folders and no images; put the images of each class"
    ):
        open_images(tmp_path / "none", 16)
    folder = plain_folder(tmp_path / "data")
    (folder / "green").mkdir()
    with pytest.raises(
        ValueError,
        match=r"green has no images \(.*; a class needs at least one, so add some or remove the folder",
    ):
        open_images(folder, 16)
    (folder / "green" / "x.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"green has no images \(1 empty files\)"):
        open_images(folder, 16)
    plain_folder(tmp_path / "parts" / "train")
    plain_folder(tmp_path / "parts" / "val")
    with pytest.raises(ValueError, match=r"splits of a dataset \(train, val\), not classes"):
        open_images(tmp_path / "parts", 16)
    with pytest.raises(
        FileNotFoundError, match="nowhere: nothing of that name; data must be 'digits' or a folder"
    ):
        open_images("nowhere", 16)
    (tmp_path / "words.csv").write_text("a,b")
    with pytest.raises(FileNotFoundError, match=r"words\.csv is a file of another kind; data must be"):
        open_images(tmp_path / "words.csv", 16)


def test_one_picture_is_a_dataset(tmp_path, caplog):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "only.png")
    source = open_images(tmp_path, 16)
    assert source.class_names == (tmp_path.name,) and len(source) == 1
    with caplog.at_level(logging.WARNING):
        train, val = source.train, source.held_out
    assert train.tolist() == val.tolist() == [0]
    assert "1 images are too few" in caplog.text


def test_fingerprints_change_with_the_list_of_examples(tmp_path):
    folder = plain_folder(tmp_path / "data")
    first = open_images(folder, 16).fingerprint
    assert (
        first
        == open_images(folder, 32).fingerprint
        == open_images(plain_folder(tmp_path / "copy"), 16).fingerprint
    ), "the place does not matter"
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


@pytest.mark.parametrize("size", [(64, 64), (33, 50), (200, 70), (16, 17), (5, 3)])
def test_center_crop_keeps_the_middle(size):
    picture = Image.new("RGB", size, "black")
    picture.paste("white", (size[0] // 2 - size[0] // 8, 0, size[0] // 2 + max(size[0] // 8, 1), size[1]))
    cropped = np.array(center_crop(picture, 16)).astype(float).mean((0, 2))
    assert cropped.shape == (16,)
    assert cropped[7:9].min() > 150, "the middle of the picture should stay in the middle"


def test_pictures_and_tensors_are_inverse(seed):
    pictures = np.random.default_rng(seed).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    tensors = torch.stack([load_image(encoded(Image.fromarray(picture)), 8) for picture in pictures])
    assert all(np.array_equal(np.array(back), picture) for back, picture in zip(to_pil(tensors), pictures))
