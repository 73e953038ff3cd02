"""Guidance: its weight grows linearly with the scale, and it is skipped where it changes nothing."""

import pytest
import torch

from mvar_models.sampling.sampler import guidance_weights
from mvar_models.sampling.settings import GUIDANCE_SCHEDULES, SamplingSettings

from tiny_models import tiny_markov_var, tiny_mvar, tiny_sample, tiny_var, tiny_vqvae


def weights_of(model, guidance_scale, schedule="linear"):
    return guidance_weights(model, SamplingSettings(guidance_scale, 0, 0.0, schedule))


@pytest.mark.parametrize(
    "schedule, expected", [("linear", (0, 1, 2)), ("constant", (2, 2, 2)), ("cosine", (0, 1, 2))]
)
def test_schedules_by_name(schedule, expected):
    assert weights_of(tiny_mvar(), 2.0, schedule) == pytest.approx(expected)
    assert GUIDANCE_SCHEDULES["cosine"](0.25) == pytest.approx((1 - 0.5**0.5) / 2)


def test_weights_by_scale_are_taken_as_they_are():
    assert weights_of(tiny_var(), [0, 3, 1.5]) == (0, 3, 1.5)
    assert weights_of(tiny_var(), [0, -3, -1.5]) == (0, -3, -1.5)  # away from the class, but guided
    assert weights_of(tiny_var(), [0, 0, 0]) is None


def test_the_released_exception_belongs_to_the_released_schedule():
    """Released MVAR leaves guidance out at a scale of 1; a constant weight of 1 is meant as it says."""
    assert weights_of(tiny_mvar(), 1.0) is None
    assert weights_of(tiny_mvar(), 1.0, "constant") == (1, 1, 1)
    assert weights_of(tiny_mvar(), 0.0, "constant") is None


@pytest.mark.parametrize(
    "options, match",
    [
        (dict(guidance_scale=[1.0, 2.0]), r"guidance_scale.*\(3\), got 2"),
        (dict(guidance_schedule="steep"), "guidance_schedule.*linear, constant, cosine.*'steep'"),
    ],
)
def test_wrong_guidance_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        tiny_sample(tiny_mvar(), [0], [0], **options)


@pytest.mark.parametrize("make", [tiny_var, tiny_mvar])
def test_a_list_of_the_linear_weights_draws_the_same(make):
    """And weights that are zero at a later scale give that scale's conditional logits."""
    model = make()
    linear = tiny_sample(model, [1, 2], [3, 4], guidance_scale=3.0)
    listed = tiny_sample(model, [1, 2], [3, 4], guidance_scale=[0, 1.5, 3.0])
    assert torch.equal(linear.indices, listed.indices)
    assert torch.equal(linear.final_logits, listed.final_logits)
    free = tiny_sample(model, [1, 2], [3, 4], guidance_scale=[0, 4.0, 0])
    inputs = tiny_vqvae().quantizer.scale_inputs(free.indices)
    with torch.no_grad():
        expected = model(torch.tensor([1, 2]), inputs)[:, -16:]
    assert torch.allclose(free.final_logits, expected, atol=1e-4)


@pytest.mark.parametrize("make, rows", [(tiny_var, [4, 4, 4]), (tiny_mvar, [2, 4, 4])])
def test_no_unconditional_half_where_its_weight_is_zero(make, rows):
    """Unless the model carries something of it to the next scale, as VAR its keys and values."""
    model, seen = make(), []
    model.blocks[0].register_forward_hook(lambda block, args, out: seen.append(out.shape[0]))
    tiny_sample(model, [1, 2], [3, 4], guidance_scale=3.0)
    assert seen == rows


def test_a_pyramid_of_one_scale_has_progress_zero():
    model = tiny_var()
    model.config = model.config.replace(sides=(4,))
    assert weights_of(model, 2.0) == (0,)
    assert weights_of(model, 2.0, "constant") == (2,)


@pytest.mark.parametrize("make", [tiny_var, tiny_mvar, tiny_markov_var])
def test_unconditional_rows_follow_the_others(make):
    model = make()
    expected = model.class_embedding.weight[[2, 0, 3, 3]]
    assert torch.equal(model.new_guided_state(torch.tensor([2, 0])).class_embedding, expected)


@pytest.mark.parametrize(
    "make, skipped, needed", [(tiny_var, [0.0], [1.0, 1.5]), (tiny_mvar, [0.0, 1.0], [1.5])]
)
def test_the_scales_that_need_no_unconditional_pass(make, skipped, needed):
    model = make()
    assert all(weights_of(model, scale) is None for scale in skipped)
    assert all(weights_of(model, scale) == (0, scale / 2, scale) for scale in needed)


@pytest.mark.parametrize("make, neutral", [(tiny_var, 0.0), (tiny_mvar, 1.0)])
def test_at_the_neutral_scale_the_conditional_model_alone_is_sampled(make, neutral):
    model = make()
    found = tiny_sample(model, [1], [3], guidance_scale=neutral, top_k=1).indices
    assert torch.equal(found, tiny_sample(model, [1], [3], guidance_scale=0.0, top_k=1).indices)


@pytest.mark.parametrize("guidance_scale", [3.0, -0.5])
@pytest.mark.parametrize("make", [tiny_var, tiny_mvar])
def test_guided_logits_combine_both_classes(make, guidance_scale):
    """At the last scale the weight is the whole guidance scale; class 3 is the unconditional one."""
    model = make()
    guided = tiny_sample(model, [1], [3], guidance_scale=guidance_scale, top_k=1)
    inputs = tiny_vqvae().quantizer.scale_inputs(guided.indices)
    with torch.no_grad():
        conditional, unconditional = (model(torch.tensor([label]), inputs)[:, -16:] for label in (1, 3))
    expected = (1 + guidance_scale) * conditional - guidance_scale * unconditional
    assert torch.allclose(guided.final_logits, expected, atol=1e-3)
