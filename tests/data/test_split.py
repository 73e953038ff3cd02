"""The split: the same for the same data since version 0.1, disjoint, balanced, and never empty."""

import hashlib
import logging

import numpy as np
import pytest

from mvar_models.data.digits import Digits
from mvar_models.data.source import Split, make_split


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


@pytest.mark.parametrize("count, expected", [(2_000, 500), (40_000, 10_000), (400_000, 10_000)])
def test_no_more_than_ten_thousand_are_held_out(count, expected):
    split = make_split(np.arange(count) % 100, 100)
    assert len(split.held_out) == expected
    assert len(split.train) + len(split.held_out) == count
    assert set(split.held_out % 100) == set(range(100))


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
