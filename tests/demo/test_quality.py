"""The judge of digits knows good from bad."""

import numpy as np
import pytest

from mvar_models.data.digits import Digits
from mvar_models.demo.quality import DigitJudge, features
from mvar_models.images import to_uint8


@pytest.fixture(scope="module")
def digits():
    source = Digits(32)
    train, val = source.train, source.held_out

    def features_of(indices):
        return features(to_uint8(source.images(indices)))

    return features_of(train), source.labels[train], features_of(val), source.labels[val]


@pytest.fixture(scope="module")
def judge(digits):
    return DigitJudge(*digits)


def test_features_are_the_original_digits(digits):
    from sklearn.datasets import load_digits

    raw = load_digits()
    train = Digits(32).train
    assert np.corrcoef(digits[0][:50].ravel(), raw.data[train[:50]].ravel())[0, 1] > 0.97
    assert digits[0].shape[1] == 64
    assert 0 <= digits[0].min()
    assert digits[0].max() <= 16


def test_real_digits_are_judged_good(judge, digits):
    _, _, val, labels = digits
    quality = judge.judge(val, labels)
    assert quality.agreement == judge.accuracy > 0.97
    assert quality.frechet < 15
    assert 0.03 < quality.near_copies < 0.07


def test_bad_images_are_judged_bad(judge, digits):
    train, train_labels, val, labels = digits
    noise = np.random.default_rng(0).uniform(0, 16, val.shape)
    assert judge.judge(noise, labels).agreement < 0.3
    assert judge.judge(noise, labels).frechet > 300
    assert judge.judge(val, (labels + 1) % 10).agreement < 0.02
    assert judge.judge(train, train_labels).near_copies == 1.0
    assert judge.judge(val, labels, val).frechet < 1e-3 < judge.judge(val, labels).frechet
    one_class = val[labels == 3]
    assert judge.judge(one_class, labels[labels == 3]).frechet > 100, (
        "a model that draws one class only is not good"
    )
