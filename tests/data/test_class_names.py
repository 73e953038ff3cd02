"""Numbers of classes: decided by their names alone, as numbers where they are numbers."""

import logging

import numpy as np
import pytest

from mvar_models.data.class_names import class_order, listed, printable, renumbered, warn_once


@pytest.mark.parametrize(
    "names, ordered",
    [
        ("cat ant bee", "ant bee cat"),
        ("10 2 0 11 1 3 4 5 6 7 8 9", "0 1 2 3 4 5 6 7 8 9 10 11"),
        ("001 000 002", "000 001 002"),
        ("10 2 x", "10 2 x"),
        ("\u0661 \u0662 2", "2 \u0661 \u0662"),
    ],
)
def test_order(names, ordered, caplog):
    names = names.split()
    with caplog.at_level(logging.WARNING):
        assert [names[i] for i in class_order(names, "photos")] == ordered.split()
    assert not caplog.records


@pytest.mark.parametrize("names, ends", [("3 1 2", "1 3"), ("0 10 2", "0 10"), ("01 1 0", "0 1")])
def test_numbers_that_are_not_those_of_the_classes_are_named_once(names, ends, caplog):
    warn_once.cache_clear()
    first, last = ends.split()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            class_order(names.split(), "photos")
    (message,) = caplog.messages
    assert f"number 0 is the class {first!r}, number 2 is {last!r}" in message


def test_two_classes_of_one_name_are_refused():
    with pytest.raises(ValueError, match="photos has two classes 'b'"):
        class_order(["a", "b", "c", "b"], "photos")


def test_names_that_are_no_utf_8_become_text():
    assert printable("caf\udce9") == "caf\\xe9"
    assert printable("caf\xe9") == "caf\xe9"


@pytest.mark.parametrize(
    "names, others, expected",
    [
        (None, None, [0, 1, 1]),
        (["a", "b"], ["a", "b"], [0, 1, 1]),
        (["a", "b"], ["b", "c", "a"], [2, 0, 0]),
        (["a", "b"], ["b"], [-1, 0, 0]),
        (["a", "b"], None, [0, 1, 1]),
        (None, ["b", "a"], [0, 1, 1]),
        (["3", "7"], None, [3, 7, 7]),
        (None, ["1", "0"], [1, 0, 0]),
        (["3", "0"], ["zero", "one", "two", "three"], [3, 0, 0]),
        (["e\u0301toile", "fleur"], ["fleur", "\u00e9toile"], [1, 0, 0]),
        (["Tench", "shark"], ["great shark, shark", "tench, Tinca tinca"], [1, 0, 0]),
        (["a", "A"], ["A", "a"], [1, 0, 0]),
        (["", "b"], ["b", ""], [-1, 0, 0]),
        (["crane", "b"], ["crane", "b", "crane"], [-1, 1, 1]),
        (["crane", "crane"], ["crane", "crane"], [0, 1, 1]),
        (["n01440764", "n01443537"], ["tench", "goldfish"], [0, 1, 1]),
        (["n01440764", "n01443537"], ["n01443537", "n01440764"], [1, 0, 0]),
    ],
)
def test_numbers_of_another_set(names, others, expected):
    assert renumbered(np.array([0, 1, 1]), names, others).tolist() == expected


def test_many_classes_are_listed_in_short():
    assert listed(np.arange(5), None) == "0, 1, 2, ..."
    assert listed(np.array([1]), ["a", "b"]) == "b"
