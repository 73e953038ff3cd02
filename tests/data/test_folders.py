"""Class folders: what counts as a class and an image, what is left out, and what is refused."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from mvar_models.data.folders import ClassFolders
from mvar_models.data.open import open_images

from odd_images import encoded, plain_folder


def test_class_folders(tmp_path):
    folder = plain_folder(tmp_path / "data")
    (folder / "red" / "deeper").mkdir()
    Image.new("RGB", (9, 9), "red").save(folder / "red" / "deeper" / "x.webp", lossless=True)
    (folder / "red" / "._0.png").write_bytes(b"what macOS leaves")
    (folder / "red" / "notes.txt").write_text("not an image")
    (folder / "loose.png").write_bytes(encoded(Image.new("RGB", (9, 9))))
    (folder / "blue" / "nowhere.png").symlink_to(tmp_path / "nowhere.png")
    source = open_images(folder, 16)
    assert isinstance(source, ClassFolders)
    assert source.class_names == ("blue", "red")
    assert source.mirror_safe
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    images = source.images(np.arange(7))
    assert images.shape == (7, 3, 16, 16)
    assert torch.equal(images[0, :, 0, 0], torch.tensor([-1.0, -1.0, 1.0]))
    assert torch.equal(images[6, :, 9, 9], torch.tensor([1.0, -1.0, -1.0]))
    reasons = list(source.skipped.values())
    assert reasons[0] == "is a link to nothing"
    assert reasons[1].startswith("has 1 images outside the class folders")
    assert list(source.skipped)[2] == "1 files"
    assert reasons[2].startswith("do not end in .bmp")


def test_a_folder_without_images_says_so(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none has no class folders and no images"):
        open_images(tmp_path / "none", 16)


def test_a_class_without_images_is_named(tmp_path):
    folder = plain_folder(tmp_path / "data")
    (folder / "green").mkdir()
    with pytest.raises(ValueError, match=r"green has no images \(.*\.png.*\); .*remove the folder"):
        open_images(folder, 16)
    (folder / "green" / "x.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"green has no images \(1 empty files\)"):
        open_images(folder, 16)


def test_splits_are_no_classes(tmp_path):
    plain_folder(tmp_path / "parts" / "train")
    plain_folder(tmp_path / "parts" / "val")
    with pytest.raises(ValueError, match=r"splits of a dataset \(train, val\), not classes"):
        open_images(tmp_path / "parts", 16)


def test_one_image_is_a_dataset(tmp_path, caplog):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "only.png")
    source = open_images(tmp_path, 16)
    assert source.class_names == (tmp_path.name,)
    assert len(source) == 1
    with caplog.at_level(logging.WARNING):
        train, val = source.train, source.held_out
    assert train.tolist() == val.tolist() == [0]
    assert "1 images are too few" in caplog.text


def test_a_file_names_the_held_out_images(tmp_path):
    folder = plain_folder(tmp_path / "data")
    plain = ClassFolders(folder, 16).fingerprint
    (folder / "held_out.txt").write_text("blue/1.png\n\nred/0.png\n")
    source = ClassFolders(folder, 16)
    assert [source.name(index).removeprefix(f"{folder}/") for index in source.held_out] == [
        "blue/1.png",
        "red/0.png",
    ]
    assert sorted([*source.train, *source.held_out]) == list(range(len(source)))
    # Tokens of one split must not be taken for those of another.
    first = source.fingerprint
    assert first != plain
    (folder / "held_out.txt").write_text("blue/1.png\n")
    assert ClassFolders(folder, 16).fingerprint not in (first, plain)


@pytest.mark.parametrize(
    "listed, named",
    [
        ("blue/1.png\nblue/nowhere.png\n", "first 'blue/nowhere.png'"),
        ("1.png\n", "first '1.png'"),
        ("".join(f"{name}/{i}.png\n" for name in ("blue", "red") for i in range(3)), "every image"),
    ],
    ids=["no such file", "path without class", "all"],
)
def test_a_wrong_list_of_held_out_images(tmp_path, listed, named):
    folder = plain_folder(tmp_path / "data")
    (folder / "held_out.txt").write_text(listed)
    with pytest.raises(ValueError, match=named) as error:
        ClassFolders(folder, 16)
    assert str(folder / "held_out.txt") in str(error.value)
