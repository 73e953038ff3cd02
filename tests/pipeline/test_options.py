"""Arguments of a call become one value per image."""

import numpy as np
import pytest
import torch

from mvar_models.pipeline.options import as_sequence, sources_of


def test_one_label_may_come_alone():
    assert as_sequence("three") == ["three"]
    assert as_sequence(np.int64(3)) == [3]
    assert as_sequence([3, "three"]) == [3, "three"]


def test_seeds_are_consecutive_or_given():
    assert sources_of(np.int64(5), None, 3) == [5, 6, 7]
    assert sources_of(np.array([3, 1]), None, 2) == [3, 1]
    with pytest.raises(ValueError, match=r"seed.*\(3\), got 2"):
        sources_of([1, 2], None, 3)


def test_one_generator_seeds_every_image():
    first = sources_of(0, torch.Generator().manual_seed(1), 3)
    assert len(set(first)) == 3
    assert sources_of(0, torch.Generator().manual_seed(1), 5)[:3] == first


@pytest.mark.parametrize(
    "seed, generator, error, match",
    [
        (3, torch.Generator(), ValueError, r"seed.*generator.*seed=3"),
        ([1], torch.Generator(), ValueError, r"seed.*generator"),
        (0, [torch.Generator()], ValueError, r"generator.*\(2\), got 1"),
        (0, [1, 2], TypeError, r"generator.*got 1"),
    ],
)
def test_generators_that_do_not_fit(seed, generator, error, match):
    with pytest.raises(error, match=match):
        sources_of(seed, generator, 2)
