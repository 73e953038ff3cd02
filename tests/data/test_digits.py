"""The digits: those of scikit-learn, with a split that every run finds again."""

import numpy as np
import pytest

from mvar_models.data.digits import Digits


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
