"""CONTRIBUTING's recipe: a metric is one file and one row of METRICS."""

import importlib

import pytest

from mvar_models.evaluation import evaluate
from mvar_models.evaluation.comparison import METRICS, metric

from feature_cases import random_images

TOY = '''
"""How far the means of both sets lie apart."""

import numpy as np


def mean_shift(comparison):
    """Compute the distance between the mean features of both sets."""
    drawn, reference = comparison.drawn.moments, comparison.reference.moments
    return {"mean_shift": float(np.linalg.norm(drawn.mean - reference.mean))}
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The one file and the one row."""
    (tmp_path / "toy_metric.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    monkeypatch.setitem(METRICS, "mean_shift", "toy_metric:mean_shift")


def test_evaluate_reports_it(toy):
    dark, light = random_images(9, high=50), random_images(9, high=50) + 100
    found = evaluate(light, dark, features="pixels")
    assert found["mean_shift"] == pytest.approx(100 * 48**0.5)
    assert set(evaluate(light, dark, features="pixels", metrics=["mean_shift"])) >= {"mean_shift", "fd"}


def test_it_is_listed_among_the_names(toy):
    with pytest.raises(ValueError, match="mean_shift"):
        metric("mse")
