"""Guidance: its weight grows linearly with the scale, and it is skipped where it changes nothing."""

import pytest
import torch

from mvar_models.sampling.guidance import combine, guidance_weight, is_guided, progress_of, with_unconditional

from tiny_models import tiny_mvar, tiny_sample, tiny_var, tiny_vqvae


def test_weights_grow_linearly_from_zero():
    weights = [guidance_weight(3.0, progress_of(scale, 4)) for scale in range(4)]
    assert weights == pytest.approx([0, 1, 2, 3])


def test_a_pyramid_of_one_scale_has_progress_zero():
    assert progress_of(0, 1) == 0


def test_combine_extrapolates():
    conditional, unconditional = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0])
    assert combine(conditional, unconditional, 0.0).tolist() == [2, 0]
    assert combine(conditional, unconditional, 2.0).tolist() == [4, -2]


def test_unconditional_rows_follow_the_others():
    assert with_unconditional(torch.tensor([4, 0]), 10).tolist() == [4, 0, 10, 10]


@pytest.mark.parametrize(
    "make, skipped, needed", [(tiny_var, [0.0], [1.0, 1.5]), (tiny_mvar, [0.0, 1.0], [1.5])]
)
def test_the_scales_that_need_no_unconditional_pass(make, skipped, needed):
    model = make()
    assert not any(is_guided(model, scale) for scale in skipped)
    assert all(is_guided(model, scale) for scale in needed)


@pytest.mark.parametrize("make, neutral", [(tiny_var, 0.0), (tiny_mvar, 1.0)])
def test_at_the_neutral_scale_the_conditional_model_alone_is_sampled(make, neutral):
    model = make()
    found = tiny_sample(model, [1], [3], guidance_scale=neutral, top_k=1).indices
    assert torch.equal(found, tiny_sample(model, [1], [3], guidance_scale=0.0, top_k=1).indices)


@pytest.mark.parametrize("make", [tiny_var, tiny_mvar])
def test_guided_logits_combine_both_classes(make):
    """At the last scale the weight is the whole guidance scale; class 3 is the unconditional one."""
    model = make()
    guided = tiny_sample(model, [1], [3], guidance_scale=3.0, top_k=1)
    inputs = tiny_vqvae().quantizer.scale_inputs(guided.indices)
    with torch.no_grad():
        conditional, unconditional = (model(torch.tensor([label]), inputs)[:, -16:] for label in (1, 3))
    assert torch.allclose(guided.final_logits, 4 * conditional - 3 * unconditional, atol=1e-3)
