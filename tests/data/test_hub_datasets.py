"""Datasets of the `datasets` library, from local files: the same images, labels and names as a folder
gives, and clear words otherwise.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from mvar_models.data import hub_datasets
from mvar_models.data.open import open_images

from odd_images import BROKEN, ODD, encoded

datasets = pytest.importorskip("datasets", reason="the extra 'data' is not installed")
pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
CONTENTS = [content for content, _ in {**ODD, **BROKEN}.values()]
LABELS = [index % 2 for index in range(len(CONTENTS))]


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """The library's caches in the test's own folder, and no network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def dataset(rows=slice(None), **columns):
    """Odd and broken images as bytes, with two classes."""
    columns = columns or {
        "image": [{"bytes": content, "path": None} for content in CONTENTS[rows]],
        "label": LABELS[rows],
    }
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def check(source):
    assert source.class_names == ("ant", "bee") and source.labels.tolist() == LABELS and source.mirror_safe
    images, kept = source.readable(np.arange(len(source)))
    assert kept.tolist() == list(range(len(ODD)))
    assert torch.equal(
        images, torch.stack([hub_datasets.load_image(content, 12) for content in CONTENTS[: len(ODD)]])
    )
    reasons = [source.problems()[source.name(len(ODD) + i)] for i in range(len(BROKEN))]
    assert all(reason.startswith(message) for reason, (_, message) in zip(reasons, BROKEN.values()))


def test_a_parquet_file_a_folder_of_them_and_a_saved_dataset_are_the_same(tmp_path):
    (tmp_path / "parts").mkdir()
    dataset().to_parquet(tmp_path / "whole.parquet")
    dataset(slice(0, 9)).to_parquet(tmp_path / "parts" / "a.parquet")
    dataset(slice(9, None)).to_parquet(tmp_path / "parts" / "b.parquet")
    dataset().save_to_disk(tmp_path / "saved")
    sources = [open_images(tmp_path / name, 12) for name in ("whole.parquet", "parts", "saved")]
    for source in sources:
        check(source)
    assert len({source.fingerprint for source in sources}) == 1
    dataset(slice(0, 9)).to_parquet(tmp_path / "less.parquet")
    assert open_images(tmp_path / "less.parquet", 12).fingerprint != sources[0].fingerprint


@pytest.mark.parametrize("where", ["in the table", "in files beside it"])
def test_stamps_and_content_tell_images_that_were_changed_in_place(tmp_path, where):
    """The same names and sizes, and so the same fingerprint."""
    seen = []
    for colour in ("red", "red", "blue"):
        content = encoded(Image.new("RGB", (9, 9), colour), "bmp")
        (tmp_path / "x.bmp").write_bytes(content)
        entry = (
            {"bytes": content, "path": "x"}
            if where == "in the table"
            else {"bytes": None, "path": str(tmp_path / "x.bmp")}
        )
        kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
        table = pyarrow.table({"image": pyarrow.array([entry], kind), "label": [0]})
        if where == "in the table" or not seen:
            parquet.write_table(table, tmp_path / "x.parquet")
        source = open_images(tmp_path / "x.parquet", 8)
        seen.append((source.fingerprint, source.stamps.tolist(), source.content(np.arange(1))))
    assert [a == b for a, b in zip(seen[0], seen[1])] == [True, False, True]
    assert [a == b for a, b in zip(seen[1], seen[2])] == [True, False, False]


def test_splits(tmp_path):
    (tmp_path / "hub" / "data").mkdir(parents=True)
    dataset().to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    dataset(slice(0, 4)).to_parquet(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet")
    assert len(open_images(tmp_path / "hub", 12)) == len(CONTENTS)
    assert len(open_images(f"{tmp_path / 'hub'}:test", 12)) == 4
    with pytest.raises(ValueError, match=r"'dev'.* train, test .*hub:train"):
        open_images(f"{tmp_path / 'hub'}:dev", 12)
    datasets.DatasetDict({"dev": dataset()}).save_to_disk(tmp_path / "one")
    assert len(open_images(tmp_path / "one", 12)) == len(CONTENTS), "the only split needs no name"
    dataset().save_to_disk(tmp_path / "none")
    dataset().to_parquet(tmp_path / "none.parquet")
    for name, named in (("none:test", "splits; leave out 'test'"), ("one:small:dev", "leave out 'small'")):
        with pytest.raises(ValueError, match=f"has no .*{named}"):
            open_images(f"{tmp_path / name}", 12)
    with pytest.raises(
        ValueError, match=r"no configurations; leave out 'small' of .*none\.parquet:small:train"
    ):
        open_images(f"{tmp_path / 'none.parquet'}:small:train", 12)


def test_tables_that_were_not_written_by_the_library(tmp_path):
    """Bytes in a column called image, words or numbers as labels."""
    images = [encoded(Image.new("RGB", (9, 9), colour)) for colour in ("red", "blue", "red")]
    parquet.write_table(
        pyarrow.table({"image": images, "class": ["wasp", "bee", "wasp"]}), tmp_path / "words.parquet"
    )
    words = open_images(tmp_path / "words.parquet", 8)
    assert words.class_names == ("bee", "wasp") and words.labels.tolist() == [1, 0, 1]
    assert torch.equal(words.images(np.array([1]))[0, :, 0, 0], torch.tensor([-1.0, -1.0, 1.0]))
    parquet.write_table(pyarrow.table({"img": images, "label": [7, 3, 7]}), tmp_path / "numbers.parquet")
    numbers = open_images(tmp_path / "numbers.parquet", 8)
    assert numbers.class_names == ("3", "7") and numbers.labels.tolist() == [1, 0, 1]
    texts = [str(number) for number in (10, 2, 0, 1, *range(3, 10))]
    images = images[:1] * len(texts)
    parquet.write_table(pyarrow.table({"img": images, "label": texts}), tmp_path / "texts.parquet")
    source = open_images(tmp_path / "texts.parquet", 8)
    assert source.class_names == tuple(map(str, range(11)))
    assert source.labels.tolist() == [int(text) for text in texts], "as numbers, like folders of such names"


@pytest.mark.parametrize(
    "columns, message",
    [
        (
            {"image": datasets.Image(), "text": datasets.Value("string")},
            r"no column of labels .*image \(.*\), text \(string\)",
        ),
        (
            {"left": datasets.Image(), "right": datasets.Image(), "label": datasets.ClassLabel(names=["a"])},
            r"several columns of images \(left, right\)",
        ),
        (
            {"words": datasets.Value("string"), "label": datasets.ClassLabel(names=["a"])},
            "has no column of images among words",
        ),
        (
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])},
            "class 'b' has no images in this split",
        ),
    ],
)
def test_columns_that_cannot_be_told_apart(columns, message, tmp_path):
    values = {
        datasets.Image: {"bytes": CONTENTS[0], "path": None},
        datasets.Value: "x",
        datasets.ClassLabel: 0,
    }
    rows = {name: [values[type(kind)]] for name, kind in columns.items()}
    datasets.Dataset.from_dict(rows, features=datasets.Features(columns)).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=message):
        open_images(tmp_path / "x.parquet", 12)


def test_rows_without_label_or_image(tmp_path):
    dataset(image=[{"bytes": CONTENTS[0], "path": None}] * 2, label=[0, -1]).to_parquet(
        tmp_path / "unlabelled.parquet"
    )
    with pytest.raises(ValueError, match=r"some rows of column 'label' have the label -1"):
        open_images(tmp_path / "unlabelled.parquet", 12)
    entries = [
        {"bytes": CONTENTS[0], "path": None},
        None,
        {"bytes": None, "path": "https://example.org/x.png"},
        {"bytes": CONTENTS[0], "path": None},
    ]
    images = pyarrow.array(entries, pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}))
    parquet.write_table(pyarrow.table({"image": images, "label": [0, 0, 1, 1]}), tmp_path / "gaps.parquet")
    source = open_images(tmp_path / "gaps.parquet", 12)
    _, kept = source.readable(np.arange(4))
    assert kept.tolist() == [0, 3]
    assert source.unreadable[1] == "holds no image" and source.unreadable[2].startswith(
        "is a link (https://example.org/x.png)"
    )


def test_what_the_hub_does_not_give(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"nobody/nothing: .*Hub",
    ):
        open_images("nobody/nothing", 16)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(ValueError, match=r"bad\.parquet cannot be opened as a dataset"):
        open_images(tmp_path / "bad.parquet", 16)


def test_a_hub_dataset_is_asked_for_by_name_configuration_and_split(monkeypatch):
    asked = []

    def load(place, name=None):
        asked.append((place, name))
        return datasets.DatasetDict({"train": dataset(), "test": dataset(slice(0, 4))})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(open_images("org/images", 12)) == len(CONTENTS)
    assert len(open_images("org/images:test", 12)) == 4
    assert len(open_images("org/images:small:test", 12)) == 4
    assert asked == [("org/images", None), ("org/images", None), ("org/images", "small")]


def test_versions_that_run_a_dataset_s_code_are_refused(monkeypatch, tmp_path):
    dataset().to_parquet(tmp_path / "x.parquet")
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    with pytest.raises(ImportError, match=r"datasets 3\.6\.0 .*install 4"):
        open_images(tmp_path / "x.parquet", 12)
