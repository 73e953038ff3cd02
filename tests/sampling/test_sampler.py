"""Sampling: filters against a plain loop, exact draws, guidance, seeds, the cache against recomputation."""

import numpy as np
import pytest
import torch

from mvar_models.sampling.sampler import draw, filter_logits, sample

from tiny_models import tiny_mvar, tiny_var, tiny_vqvae


def plain_filter(row, top_k, top_p):
    """One row of logits by the definition, in a loop."""
    row = row.double()
    allowed = torch.ones(len(row), dtype=torch.bool)
    if 0 < top_k < len(row):
        allowed &= row >= sorted(row.tolist(), reverse=True)[top_k - 1]
    if 0 < top_p < 1:
        probability = torch.where(allowed, row, -torch.inf).softmax(0)
        kept, total = set(), 0.0
        for index in probability.argsort(descending=True).tolist():
            if total >= top_p:
                break
            kept.add(index)
            total += probability[index].item()
        allowed &= torch.tensor([index in kept for index in range(len(row))])
    return allowed


@pytest.mark.parametrize(
    "top_k, top_p", [(0, 0.0), (5, 0.0), (0, 0.7), (9, 0.5), (1, 0.9), (100, 1.0), (3, 1e-6)]
)
def test_filters_keep_what_their_definition_keeps(seed, top_k, top_p):
    logits = torch.randn(2, 7, 20) * 3
    kept = filter_logits(logits, top_k, top_p).isfinite()
    for batch in range(2):
        for token in range(7):
            assert torch.equal(kept[batch, token], plain_filter(logits[batch, token], top_k, top_p)), (
                batch,
                token,
            )


def test_ties_at_the_kth_are_kept():
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0, 0.0]])
    assert filter_logits(logits, top_k=2).isfinite().tolist() == [[True, False, True, True, False]]


@pytest.mark.parametrize(
    "top_k, top_p, message",
    [(-1, 0, "top_k must be 0"), (0, -0.1, "top_p must be between"), (0, 1.5, "top_p must be between")],
)
def test_wrong_filters(top_k, top_p, message):
    with pytest.raises(ValueError, match=message):
        filter_logits(torch.zeros(1, 4), top_k, top_p)


def test_draw_inverts_the_distribution():
    """A uniform number u picks the code whose interval of the cumulative distribution holds u; impossible codes are never drawn."""
    logits = torch.tensor([0.1, 0.0, 0.4, 0.5]).log().expand(1, 1001, 4)
    uniform = torch.linspace(0, 1 - 2**-24, 1001)[None]
    counts = torch.bincount(draw(logits, uniform).flatten(), minlength=4)
    assert counts[1] == 0
    assert torch.allclose(counts / 1001, torch.tensor([0.1, 0.0, 0.4, 0.5]), atol=2e-3)
    last_impossible = torch.tensor([[[0.0, -torch.inf]]])
    assert draw(last_impossible, torch.tensor([[1 - 2**-24]])).item() == 0


def run(model, labels, seeds, **options):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return sample(
        model,
        tiny_vqvae().quantizer,
        torch.tensor(labels),
        generators,
        **{"guidance_scale": 1.5, "top_k": 8, **options},
    )


@pytest.mark.parametrize("make", [tiny_var, tiny_mvar])
def test_the_picture_of_a_seed_does_not_depend_on_the_batch(make):
    model = make()
    together = run(model, [0, 1, 2, 1, 0, 2, 2, 1], range(10, 18)).indices
    for index, label in enumerate([0, 1, 2, 1, 0, 2, 2, 1]):
        assert torch.equal(run(model, [label], [10 + index]).indices[0], together[index]), index
    assert torch.equal(run(model, [1, 1, 0], [13, 11, 14]).indices, together[[3, 1, 4]])


@pytest.mark.parametrize("make", [tiny_var, tiny_mvar])
def test_sampled_logits_are_those_of_teacher_forcing(make):
    """Step by step (with VAR's cache) and all at once are the same function."""
    model, vqvae = make(), tiny_vqvae()
    result = run(model, [0, 2], [5, 6], guidance_scale=0.0)
    with torch.no_grad():
        logits = model(torch.tensor([0, 2]), vqvae.quantizer.scale_inputs(result.indices))
    assert torch.allclose(logits[:, -16:], result.final_logits, atol=1e-4)
    assert torch.allclose(vqvae.quantizer.embed(result.indices), result.f_hat, atol=1e-5)


@pytest.mark.parametrize("make, neutral", [(tiny_var, 0.0), (tiny_mvar, 1.0)])
def test_guidance(make, neutral):
    """At the neutral value only the conditional pass runs; elsewhere logits are (1 + t) conditional - t unconditional."""
    model = make()
    plain = run(model, [1], [3], guidance_scale=neutral, top_k=1)
    assert torch.equal(plain.indices, run(model, [1], [3], guidance_scale=0.0, top_k=1).indices)
    guided = run(model, [1], [3], guidance_scale=3.0, top_k=1)
    vqvae = tiny_vqvae()
    inputs = vqvae.quantizer.scale_inputs(guided.indices)
    with torch.no_grad():
        conditional, unconditional = (model(torch.tensor([label]), inputs)[:, -16:] for label in (1, 3))
    assert torch.allclose(guided.final_logits, 4 * conditional - 3 * unconditional, atol=1e-3)


def test_more_smooth_mixes_codes():
    model = tiny_mvar()
    first, second = (run(model, [0, 1], [1, 2], more_smooth=True).f_hat for _ in range(2))
    assert torch.equal(first, second) and first.isfinite().all()
    assert not torch.equal(first, run(model, [0, 1], [1, 2]).f_hat)


def test_scales_are_reported_in_order():
    seen = []
    run(tiny_mvar(), [0], [0], on_scale=lambda scale, f_hat: seen.append((scale, tuple(f_hat.shape))))
    assert seen == [(scale, (1, 4, 4, 4)) for scale in range(3)]


def test_one_generator_per_picture():
    with pytest.raises(ValueError, match="one generator per picture"):
        run(tiny_mvar(), [0, 1], [0])


def test_uniform_numbers_are_float64_until_they_are_used():
    """A generator's stream is consumed the same way whatever the batch; regression guard on the number of draws per scale."""
    generator = torch.Generator().manual_seed(0)
    sample(tiny_mvar(), tiny_vqvae().quantizer, torch.tensor([0]), [generator], guidance_scale=0.0)
    expected = torch.Generator().manual_seed(0)
    torch.rand(1 + 4 + 16, generator=expected, dtype=torch.float64)
    assert np.array_equal(generator.get_state().numpy(), expected.get_state().numpy())
