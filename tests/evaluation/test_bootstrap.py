"""Bootstrap intervals against the known deviation of a mean."""

import pytest

from mvar_models.evaluation.bootstrap import bootstrap_intervals
from mvar_models.evaluation.comparison import Comparison
from mvar_models.evaluation.image_sets import ArrayImages
from mvar_models.evaluation.summary import summarize

from feature_cases import random_images, toy


def test_a_share_deviates_as_a_binomial():
    drawn, reference = (summarize(ArrayImages(random_images(80, seed=seed)), toy()) for seed in (0, 1))
    comparison = Comparison(drawn, reference)
    share = comparison.neighbourhoods.precision
    found = bootstrap_intervals(comparison, 60)["precision"]
    assert found["deviation"] == pytest.approx((share * (1 - share) / 80) ** 0.5, rel=0.4)
    assert (found["low"] + found["high"]) / 2 == pytest.approx(share)
