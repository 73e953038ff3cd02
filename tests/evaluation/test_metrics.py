"""Every row of the table of metrics can be used, and says how."""

import inspect

import pytest

from mvar_models.evaluation.metrics import METRICS, metric


@pytest.mark.parametrize("name", METRICS)
def test_rows_are_functions_with_documented_arguments(name):
    function = metric(name)
    assert callable(function)
    assert inspect.getdoc(function), f"{name} has no docstring"


def test_unknown_metrics_are_refused():
    with pytest.raises(ValueError, match=r"metric.*psnr.*'ssim'"):
        metric("ssim")
