"""Labels by number, name and synonym; what is unknown or ambiguous is refused with a hint."""

import unicodedata

import numpy as np
import pytest

from mvar_models.sampling.labels import label_number, split_labels

NAMES = ("tench, Tinca tinca", "crane", "crane, machine", "Great White", "great white")


@pytest.mark.parametrize(
    "label, expected",
    [
        (2, 2), (np.int64(1), 1), ("4", 4), ("tench, Tinca tinca", 0), ("Tinca tinca", 0), ("TENCH", 0),
        ("tin", 0), ("crane", 1), ("machine", 2), ("great white", 4),
    ],
)  # fmt: skip
def test_numbers_names_and_synonyms(label, expected):
    """A whole name comes before a synonym, and exact spelling before any case."""
    assert label_number(label, len(NAMES), NAMES) == expected


@pytest.mark.parametrize(
    "label, match",
    [
        (5, r"label 5.*0 to 4"), (-1, r"label -1"), ("7", "label 7"), ("\xb2", "'\xb2'"),
        ("GREAT WHITE", r"classes 3 .Great White., 4"),
        ("tensh", "did you mean 'tench'"), ("zebra", "'zebra'.*tench, Tinca tinca, crane"),
    ],
)  # fmt: skip
def test_unknown_and_ambiguous_labels_are_refused(label, match):
    with pytest.raises(ValueError, match=match):
        label_number(label, len(NAMES), NAMES)


@pytest.mark.parametrize("typed, stored", [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_are_found_in_either_form(typed, stored):
    """A name made on macOS keeps them apart from their letters, and keyboards do not."""
    names = [unicodedata.normalize(stored, name) for name in ("tea", "caf\xe9, Kaff\xea")]
    for label in ("caf\xe9", "KAFF\xca", "caf\xe9, Kaff\xea"):
        assert label_number(unicodedata.normalize(typed, label), 2, names) == 1
    with pytest.raises(ValueError, match="did you mean"):
        label_number(unicodedata.normalize(typed, "caff\xe9"), 2, names)


def test_models_without_names_take_numbers_alone():
    assert label_number("1", 3) == 1
    with pytest.raises(ValueError, match=r"'tench'.*no class names"):
        label_number("tench", 3)


@pytest.mark.parametrize("label", [True, 1.0, None])
def test_other_types_are_refused(label):
    with pytest.raises(TypeError, match=repr(label)):
        label_number(label, 3)


def test_long_lists_of_names_are_cut():
    with pytest.raises(ValueError, match=r"n9, \.\.\.$"):
        label_number("zebra", 20, [f"n{i}" for i in range(20)])


@pytest.mark.parametrize(
    "text, expected",
    [
        ("3, 7", ["3", "7"]),
        ("tench, Tinca tinca,7", ["tench, Tinca tinca", "7"]),
        ("7,TENCH,tinca TINCA", ["7", "TENCH, tinca TINCA"]),
        ("tench,crane, machine,crane", ["tench", "crane, machine", "crane"]),
        ("Tinca tinca", ["Tinca tinca"]),
    ],
)
def test_commas_part_labels_but_not_names_that_have_them(text, expected):
    assert split_labels(text, NAMES) == expected
    assert all(label_number(label, len(NAMES), NAMES) >= 0 for label in expected if not label.isdigit())


def test_without_names_every_comma_parts():
    assert split_labels("crane, machine") == ["crane", "machine"]
