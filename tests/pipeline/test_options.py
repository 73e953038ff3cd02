"""Arguments of a call become one value per image."""

import numpy as np
import pytest

from mvar_models.pipeline.options import as_sequence, sampler_of, seeds_of
from mvar_models.sampling.sampler import Sampler
from mvar_models.sampling.smooth import SmoothSampler


def test_one_label_may_come_alone():
    assert as_sequence("three") == ["three"]
    assert as_sequence(np.int64(3)) == [3]
    assert as_sequence([3, "three"]) == [3, "three"]


def test_seeds_are_consecutive_or_given():
    assert seeds_of(np.int64(5), 3) == [5, 6, 7]
    assert seeds_of(np.array([3, 1]), 2) == [3, 1]
    with pytest.raises(ValueError, match=r"seed.*\(3\), got 2"):
        seeds_of([1, 2], 3)


def test_more_smooth_names_a_sampler():
    assert isinstance(sampler_of("ancestral", True), SmoothSampler)
    assert type(sampler_of("ancestral", False)) is Sampler
    with pytest.raises(ValueError, match="more_smooth"):
        sampler_of(Sampler(), True)
