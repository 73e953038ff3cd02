"""Every row of the table of metrics can be used, and says how."""

import inspect

import pytest

from mvar_models.evaluation import (
    agreement,
    codebook,
    comparison,
    diversity,
    frechet,
    likelihood,
    reconstruction,
)
from mvar_models.evaluation.metrics import METRICS, metric


@pytest.mark.parametrize("name", METRICS)
def test_rows_are_functions_with_documented_arguments(name):
    function = metric(name)
    assert callable(function)
    assert inspect.getdoc(function), f"{name} has no docstring"


def test_each_name_gives_its_function():
    assert {name: metric(name) for name in METRICS} == {
        "psnr": reconstruction.psnr,
        "codes_used": codebook.codes_used,
        "perplexity": codebook.perplexity,
        "frechet": frechet.frechet_distance,
        "likelihood": likelihood.held_out_losses,
        "fd": comparison.fd,
        "sfd": comparison.sfd,
        "is": comparison.inception,
        "precision": comparison.precision,
        "recall": comparison.recall,
        "density": comparison.density,
        "coverage": comparison.coverage,
        "kid": comparison.kid,
        "near_copies": comparison.near_copies,
        "label_agreement": agreement.label_agreement,
        "class_diversity": diversity.class_diversity,
    }


def test_unknown_metrics_are_refused():
    with pytest.raises(ValueError, match=r"metric.*psnr.*'ssim'"):
        metric("ssim")
