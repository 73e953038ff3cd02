"""What --data names, opened; and the digits."""

import numpy as np
import pytest

from mvar_models.data import hub_datasets
from mvar_models.data.digits import Digits
from mvar_models.data.folders import ClassFolders
from mvar_models.data.open import check_data_exists, open_images

from odd_images import plain_folder


def test_names_open_the_source_they_mean(tmp_path):
    assert isinstance(open_images("digits", 16), Digits)
    assert isinstance(open_images(plain_folder(tmp_path / "data"), 16), ClassFolders)


def test_a_folder_with_a_colon_in_its_name_is_taken_whole(tmp_path):
    plain_folder(tmp_path / "data", classes=("red",))
    plain_folder(tmp_path / "data:red")
    assert open_images(tmp_path / "data:red", 16).class_names == ("blue", "red")


def test_a_part_of_a_folder_is_the_folder_of_that_name(tmp_path):
    """It must not be ignored: that would train on what is to be tested on."""
    for name in ("train", "a:b/test"):
        plain_folder(tmp_path / "data" / name, classes=(name[:1],))
    for part, name in (("train", "t"), ("a:b/test", "a")):
        data = f"{tmp_path / 'data'}:{part}"
        check_data_exists(data)
        assert open_images(data, 16).class_names == (name,)
    for ask in (check_data_exists, lambda data: open_images(data, 16)):
        with pytest.raises(FileNotFoundError, match=r"data has no folder 'dev', which .*data:dev asks for"):
            ask(f"{tmp_path / 'data'}:dev")
        with pytest.raises(FileNotFoundError, match="digits has no parts, digits:train asks"):
            ask("digits:train")


@pytest.mark.parametrize(
    "data, expected",
    [
        ("org/images", ("org/images", 16, "")),
        ("org/images:test", ("org/images", 16, "test")),
        ("org/images:small:test", ("org/images", 16, "small:test")),
    ],
)
def test_a_name_that_is_no_path_is_a_hub_dataset(data, expected, monkeypatch):
    monkeypatch.setattr(hub_datasets, "HubDataset", lambda *arguments: arguments)
    assert open_images(data, 16) == expected


@pytest.mark.parametrize("ask", [check_data_exists, lambda data: open_images(data, 16)])
def test_names_of_nothing_are_refused(ask, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: nothing of that name; .*'digits'"):
        ask("nowhere")
    (tmp_path / "words.csv").write_text("a,b")
    with pytest.raises(FileNotFoundError, match=r"words\.csv is a file of another kind"):
        ask(tmp_path / "words.csv")


def test_what_exists_passes_the_check(tmp_path):
    """The name of a Hub dataset passes by its form: the check needs no network."""
    for data in ("digits", tmp_path, "org/images", "org/images:test"):
        check_data_exists(data)


@pytest.fixture(scope="module")
def digits():
    return Digits(32)


def test_digits_are_those_of_scikit_learn(digits):
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = digits.images(np.arange(5))
    assert images.shape == (5, 3, 32, 32)
    assert images.min() >= -1
    assert images.max() <= 1
    pooled = (images.mean(1).reshape(5, 8, 4, 8, 4).mean((2, 4)) + 1) * 8
    assert np.corrcoef(pooled.numpy().ravel(), raw.images[:5].ravel())[0, 1] > 0.97
    assert digits.class_names[raw.target[3]] == "three"


def test_the_split_is_fixed_disjoint_and_balanced(digits):
    train, val = digits.train, digits.held_out
    again = Digits(32)
    assert np.array_equal(train, again.train)
    assert np.array_equal(val, again.held_out)
    assert sorted([*train, *val]) == list(range(1797))
    assert 0.2 <= len(val) / 1797 <= 1 / 3
    shares = np.bincount(digits.labels[val]) / np.bincount(digits.labels)
    assert shares.min() > 0.23
    assert shares.max() < 0.27


def test_a_mirrored_digit_is_another_sign(digits):
    assert not digits.mirror_safe
