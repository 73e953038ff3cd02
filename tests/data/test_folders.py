"""Class folders: what counts as a class and an image, what is left out, and what is refused."""

import logging
import re
import shutil
import unicodedata
from pathlib import Path

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
    (folder / "red" / "README").write_text("not an image")
    (folder / "loose.png").write_bytes(encoded(Image.new("RGB", (9, 9))))
    (folder / "blue" / "nowhere.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "green").symlink_to(tmp_path / "nowhere")
    source = open_images(folder, 16)
    assert isinstance(source, ClassFolders)
    assert source.class_names == ("blue", "red")
    assert source.mirror_safe
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    images = source.images(np.arange(7))
    assert images.shape == (7, 3, 16, 16)
    assert torch.equal(images[0, :, 0, 0], torch.tensor([-1.0, -1.0, 1.0]))
    assert torch.equal(images[6, :, 9, 9], torch.tensor([1.0, -1.0, -1.0]))
    assert source.skipped == {
        str(folder / "green"): "is a link to nothing",
        str(folder / "blue" / "nowhere.png"): "is a link to nothing",
        str(folder): "has 1 images outside the class folders, which belong to no class",
        "2 files": "are left out for their suffixes: 1 without one, 1 .txt",
    }


@pytest.mark.parametrize(
    "name", ["a.JPG", "a.jfif", "a.jpe", "a.apng", "a.avif", "a.jp2", "a.tga", "a.dib", "a.pnm", "a.pbm"]
)
def test_suffixes_of_images(tmp_path, name):
    """What a suffix says is decided here, and not by what this Pillow can write."""
    (tmp_path / name).write_bytes(encoded(Image.new("RGB", (9, 9))))
    assert len(open_images(tmp_path, 16).images(np.arange(1))) == 1


SYSTEMS = (
    "@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg",
    "__MACOSX/red/0.png",
    "$RECYCLE.BIN/S-1-5-21/$R0.png",
    "System Volume Information/x.png",
    "#recycle/0.png",
    ".ipynb_checkpoints/0-checkpoint.png",
    ".Trash-1000/files/0.png",
)


@pytest.mark.parametrize("place", [".", "red", "red/deeper"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_what_systems_leave_is_neither_class_nor_image(tmp_path, place, name):
    """A thumbnail of a held-out image in the training part would be a leak."""
    folder = plain_folder(tmp_path / "data")
    file = folder / place / name
    file.parent.mkdir(parents=True)
    file.write_bytes((folder / "red" / "0.png").read_bytes())
    source = open_images(folder, 16)
    assert (source.class_names, len(source)) == (("blue", "red"), 6)
    kind = name.partition("/")[0]
    assert kind.startswith(".") or source.skipped == {"1 folders": f"are the system's, not yours: {kind}"}


def test_links_to_folders_are_followed_once(tmp_path):
    """Images elsewhere are those of the class; images that are listed anyway would count twice."""
    folder = plain_folder(tmp_path / "data")
    more = plain_folder(tmp_path / "more", classes=("green",))
    (folder / "green").symlink_to(more / "green")
    for name, target in (
        ("a", plain_folder(tmp_path / "red", classes=("red",))),
        ("b", tmp_path / "red" / "red"),
        ("c", folder / "blue"),
        ("d", folder),
        ("e", tmp_path),
        ("f", more),
    ):
        (folder / "red" / name).symlink_to(target)
    (tmp_path / "red" / "red" / "back").symlink_to(tmp_path / "red")
    source = open_images(folder, 16)
    assert source.class_names == ("blue", "green", "red")
    assert np.bincount(source.labels).tolist() == [3, 3, 6]
    links = {f"red/{name}" for name in "bcdef"} | {"red/a/red/back"}
    assert set(source.skipped) == {str(folder / name) for name in links}
    assert all(reason.endswith("whose images would count twice") for reason in source.skipped.values())
    (folder / "azure").symlink_to(folder / "blue")
    with pytest.raises(ValueError, match=r"azure is a link to .*blue, .*remove the link"):
        open_images(folder, 16)


def test_a_store_in_a_hidden_folder_is_read_through_links(tmp_path):
    plain_folder(tmp_path / "data" / ".store")
    for name in ("blue", "red"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "data" / ".store" / name)
    assert len(open_images(tmp_path / "data", 16)) == 6


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


@pytest.mark.parametrize(
    "layout, named",
    [
        ("train val", "train"),
        ("train valid test", "train"),
        ("Training Testing", "Training"),
        ("train test unlabeled", "train"),
        ("train meta test", "train"),
        ("val2017 train2017", "train2017"),
        ("test_set training_set", "training_set"),
        ("test dev", "dev"),
        ("train", "train"),
        ("photos/train", "photos/train"),
        ("photos/val photos/train", "photos/train"),
    ],
)
def test_splits_are_no_classes(tmp_path, layout, named):
    """The line names the training images and never, where there are such, those to test on."""
    for split in layout.split():
        plain_folder(tmp_path / split)
    with pytest.raises(ValueError, match=rf"split.*not classes; name .*{tmp_path / named}$"):
        open_images(tmp_path, 16)


@pytest.mark.parametrize(
    "layout, warning",
    [
        ("photos/red photos/blue", "one class, 'photos'; if its folders (blue, red) are .* name {}/photos"),
        ("a/b/red a/b/blue __MACOSX/a", "one class, 'a'; if its folders (blue, red) are .* name {}/a/b"),
        ("red blue unlabeled", "{}/unlabeled is taken for a class"),
        ("blue masks", "{}/masks is taken for a class"),
        ("train", None),
        ("train bus car", None),
        ("flowers", None),
        ("red blue", None),
    ],
)
def test_folders_that_may_be_no_classes_are_named(tmp_path, caplog, layout, warning):
    for name in layout.split():
        plain_folder(tmp_path / Path(name).parent, classes=(Path(name).name,))
    with caplog.at_level(logging.WARNING):
        open_images(tmp_path, 16)
    expected = [] if warning is None else [warning.format(tmp_path)]
    assert len(caplog.messages) == len(expected)
    for message, pattern in zip(caplog.messages, expected):
        assert re.search(pattern.replace("(", r"\(").replace(")", r"\)"), message)


def test_a_copy_from_another_system_is_the_same_data(tmp_path):
    """Classes, their images, the split and the fingerprint: macOS keeps accents apart from their letters."""
    images = sorted((plain_folder(tmp_path, classes=("red",), count=5) / "red").iterdir())
    sources = []
    for form in ("NFC", "NFD"):
        for name in ("etude", unicodedata.normalize(form, "\xe9toile"), "fleur"):
            (tmp_path / form / name).mkdir(parents=True)
            for image, letter in zip(images, "abe\xe9f"):
                shutil.copy(image, tmp_path / form / name / f"{unicodedata.normalize(form, letter)}.png")
        source = open_images(tmp_path / form, 16)
        assert source.class_names == ("etude", "fleur", "\xe9toile")
        assert [unicodedata.normalize("NFC", source.name(i))[-5] for i in range(5)] == list("abef\xe9")
        assert len(source.images(np.arange(15))) == 15
        sources.append(source)
        (tmp_path / form / "held_out.txt").write_text("\xe9toile/\xe9.png\n", encoding="utf-8")
        assert open_images(tmp_path / form, 16).held_out.tolist() == [14]
    assert sources[0].fingerprint == sources[1].fingerprint
    other = tmp_path / "NFC" / unicodedata.normalize("NFD", "\xe9toile")
    if not other.exists():  # some file systems join the two
        shutil.copytree(tmp_path / "red", other)
        with pytest.raises(ValueError, match="has two classes '\xe9toile'"):
            open_images(tmp_path / "NFC", 16)


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


LISTED = ["blue/1.png", "red/0.png"]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + "\r\n".join(LISTED).encode(),
        "\r\n".join(LISTED).replace("/", "\\").encode(),
        "".join(f"./{line}\n" for line in LISTED).encode(),
        "".join(f"  {line} \n\n" for line in LISTED).encode(),
    ],
    ids=["byte-order mark", "backslashes", "./", "blanks"],
)
def test_a_list_of_held_out_images_as_windows_programs_write_it(tmp_path, content):
    folder = plain_folder(tmp_path / "data")
    (folder / "held_out.txt").write_bytes(content)
    assert ClassFolders(folder, 16).split.reserved.tolist() == [1, 3]


@pytest.mark.parametrize("name", ["held_out.txt.txt", "Held-Out.txt", "heldout.csv", "blue/held_out.txt"])
def test_a_list_of_another_name_is_not_passed_over_in_silence(tmp_path, name, caplog):
    folder = plain_folder(tmp_path / "data")
    (folder / name).write_text("blue/1.png\n")
    source = ClassFolders(folder, 16)
    expected = f"is not read; what is held out is listed in {folder / 'held_out.txt'}"
    assert source.skipped == {str(folder / name): expected}
    assert caplog.messages == [f"{folder / name} {expected}"]


@pytest.mark.parametrize(
    "listed, named",
    [
        (b"blue/1.png\n\nblue/nowhere.png\n", "line 3 names 'blue/nowhere.png'"),
        (b"1.png\n", "line 1 names '1.png'"),
        (b"../red/0.png\n", "line 1 names '../red/0.png'"),
        (b"".join(b"%s/%d.png\n" % (name, i) for name in (b"blue", b"red") for i in range(3)), "every image"),
        (b"\n", "names no image"),
        ("\n".join(LISTED).encode("utf-16"), "UTF-16"),
        (b"blue/caf\xe9.png", "must be text in UTF-8; byte 8 is not"),
    ],
    ids=["no such file", "path without class", "above", "all", "none", "UTF-16", "Latin-1"],
)
def test_a_wrong_list_of_held_out_images(tmp_path, listed, named):
    folder = plain_folder(tmp_path / "data")
    (folder / "held_out.txt").write_bytes(listed)
    with pytest.raises(ValueError, match=named) as error:
        ClassFolders(folder, 16)
    assert str(folder / "held_out.txt") in str(error.value)
