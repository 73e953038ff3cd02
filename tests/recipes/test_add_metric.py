"""CONTRIBUTING's recipe: a metric is one file and one row of METRICS."""

import importlib

import pytest
import torch

from mvar_models.evaluation.metrics import METRICS, metric

TOY = '''
"""Mean absolute error of images."""


def mean_absolute_error(images, originals):
    """Mean absolute error of each image of (n, 3, R, R): (n,)."""
    return (images - originals).abs().mean(dim=(1, 2, 3))
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The one file and the one row."""
    (tmp_path / "toy_metric.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    monkeypatch.setitem(METRICS, "mae", "toy_metric:mean_absolute_error")


def test_it_is_computed_by_its_name(toy):
    originals = torch.zeros(2, 3, 4, 4)
    images = originals + torch.tensor([1.0, -0.5])[:, None, None, None]
    assert metric("mae")(images, originals).tolist() == [1.0, 0.5]


def test_it_is_listed_among_the_names(toy):
    with pytest.raises(ValueError, match="mae"):
        metric("mse")
