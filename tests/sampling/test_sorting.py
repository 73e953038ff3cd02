"""The sorting sampler draws the codes of the operator."""

import pytest
import torch

from mvar_models.sampling.sampler import make_sampler
from mvar_models.sampling.sorting import SortingSampler

from tiny_models import tiny_mvar, tiny_sample, tiny_var

LABELS, SEEDS = [0, 2, 1], [3, 4, 5]


@pytest.mark.parametrize("make", [tiny_var, tiny_mvar])
@pytest.mark.parametrize(
    "options", [{}, {"top_p": 0.8}, {"guidance_scale": 0.0}], ids=["k", "k, p", "unguided"]
)
def test_both_draw_the_same(make, options):
    model = make()
    quick, by_sort = (
        tiny_sample(model, LABELS, SEEDS, sampler=name, **options) for name in ("ancestral", "sorted")
    )
    assert isinstance(make_sampler("sorted"), SortingSampler) and not SortingSampler.reads_generators
    assert torch.equal(quick.indices, by_sort.indices)
    assert torch.equal(quick.f_hat, by_sort.f_hat)
