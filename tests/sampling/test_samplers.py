"""Filters, the draw, and the smooth sampler.

Filters keep what a plain loop over their definition keeps, and draws follow the distribution exactly. The
smooth sampler adds mixtures of codes to f_hat, repeatably; they harden from coarse to fine.
"""

import pytest
import torch

from mvar_models.sampling.hooks import ScaleContext
from mvar_models.sampling.samplers import SmoothSampler, draw, filter_logits
from mvar_models.sampling.settings import SamplingSettings

from code_cases import NEARLY_OFF
from tiny_models import tiny_mvar, tiny_sample, tiny_vqvae


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
    "top_k, top_p",
    [
        (0, 0.0),
        (5, 0.0),
        (12, 0.0),
        (0, 0.7),
        (9, 0.5),
        (1, 0.9),
        (100, 1.0),
        (3, 1e-6),
        (19, 0.0),
        (0, 0.999),
    ],
)
def test_filters_keep_what_their_definition_keeps(seed, top_k, top_p):
    logits = torch.randn(2, 7, 20) * 3
    kept = filter_logits(logits, top_k, top_p).isfinite()
    for batch in range(2):
        for token in range(7):
            expected = plain_filter(logits[batch, token], top_k, top_p)
            assert torch.equal(kept[batch, token], expected), (batch, token)


@pytest.mark.parametrize("logits, uniform, settings, code", NEARLY_OFF)
def test_filters_that_are_nearly_off(logits, uniform, settings, code):
    assert draw(filter_logits(torch.tensor(logits), **settings), torch.tensor(uniform)).item() == code


def test_without_settings_nothing_is_filtered():
    assert filter_logits(torch.tensor([[3.0, -50.0]])).isfinite().all()


def test_codes_stop_where_top_p_is_reached_exactly():
    assert filter_logits(torch.zeros(1, 2), top_p=0.5).isfinite().sum() == 1


def test_ties_at_the_kth_are_kept():
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0, 0.0]])
    assert filter_logits(logits, top_k=2).isfinite().tolist() == [[True, False, True, True, False]]


def test_draw_inverts_the_distribution():
    """A uniform number picks the code whose interval of the cumulative distribution holds it."""
    logits = torch.tensor([0.1, 0.0, 0.4, 0.5]).log().expand(1, 1001, 4)
    uniform = torch.linspace(0, 1 - 2**-24, 1001)[None]
    counts = torch.bincount(draw(logits, uniform).flatten(), minlength=4)
    assert counts[1] == 0
    assert torch.allclose(counts / 1001, torch.tensor([0.1, 0.0, 0.4, 0.5]), atol=2e-3)
    last_impossible = torch.tensor([[[0.0, -torch.inf]]])
    assert draw(last_impossible, torch.tensor([[1 - 2**-24]])).item() == 0
    first_impossible = torch.tensor([[[-torch.inf, 0.0]]])
    assert draw(first_impossible, torch.zeros(1, 1)).item() == 1


def test_a_threshold_at_the_very_end_draws_the_last_possible_code():
    """Rounding can put the threshold where the sum ends; codes after the last possible one stay out."""
    logits = torch.tensor([[[0.0, 1.0, -torch.inf, -torch.inf], [0.0, 1.0, -torch.inf, 2.0]]])
    assert draw(logits, torch.ones(1, 2)).tolist() == [[1, 3]]


def choose(logits, progress, seed=0, top_k=0, top_p=0.0):
    quantizer = tiny_vqvae().quantizer
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(logits))]
    uniform = torch.full(logits.shape[:2], 0.5)
    labels, f_hat = torch.zeros(len(logits), dtype=torch.int64), torch.zeros(len(logits), 4, 4, 4)
    context = ScaleContext(
        scale=0,
        progress=progress,
        images=slice(0, len(logits)),
        uniform=uniform,
        generators=generators,
        settings=SamplingSettings(guidance_scale=0.0, top_k=top_k, top_p=top_p),
        quantizer=quantizer,
        labels=labels,
        f_hat=f_hat,
        scales=range(3),
    )
    with torch.no_grad():
        codes, vectors = SmoothSampler().choose(logits, context)
    return codes, vectors, quantizer.codebook.weight.detach()


def test_a_seed_gives_the_same_mixture():
    first, second = (tiny_sample(tiny_mvar(), [0, 1], [1, 2], sampler="smooth").f_hat for _ in range(2))
    assert torch.equal(first, second)
    assert first.isfinite().all()


def test_mixtures_are_not_drawn_codes():
    smooth = tiny_sample(tiny_mvar(), [0, 1], [1, 2], sampler="smooth").f_hat
    assert not torch.allclose(smooth, tiny_sample(tiny_mvar(), [0, 1], [1, 2]).f_hat, atol=1e-3)


def test_codes_that_may_not_be_drawn_have_no_weight():
    logits = torch.full((1, 3, 24), float("-inf"))
    logits[..., 7] = 0
    codes, vectors, codebook = choose(logits, 0.0)
    assert codes.tolist() == [[7, 7, 7]]
    assert torch.allclose(vectors, codebook[7].expand(1, 3, -1))


def test_mixtures_harden_towards_the_finest_scale(seed):
    """The distance of a mixture to its nearest code shrinks with the temperature."""
    logits = torch.randn(8, 16, 24)

    def distance(progress):
        _, vectors, codebook = choose(logits, progress)
        return torch.cdist(vectors.flatten(0, 1), codebook).min(dim=1).values.mean()

    assert distance(1.0) < 0.5 * distance(0.0)


@pytest.mark.parametrize("filters", [{"top_k": 2}, {"top_p": 0.6}])
def test_filtered_codes_are_neither_drawn_nor_mixed(seed, filters):
    """Of 24 codes, two hold 0.4 and 0.3, and a draw at 0.5 without filters would be among the others."""
    logits = torch.full((4, 3, 24), 0.3 / 22).log()
    logits[..., 20:22] = torch.tensor([0.4, 0.3]).log()
    codes, vectors, codebook = choose(logits, 0.0, **filters)
    assert codes.tolist() == [[20] * 3] * 4
    between = codebook[21] - codebook[20]
    share = ((vectors - codebook[20]) @ between / (between @ between)).unsqueeze(-1)
    assert torch.allclose(vectors, codebook[20] + share * between, atol=1e-5), "a mixture of these two alone"
    assert bool((share > 1e-4).any()), "and not one code, as at the finest scale"


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_mixtures_are_a_gumbel_softmax(progress, seed):
    """softmax((logits (1 + progress) + gumbel) / (0.27 (1 - 0.95 progress))), as VAR's `more_smooth`."""
    logits = torch.randn(1, 5, 24)
    uniform = torch.rand(5, 24, generator=torch.Generator().manual_seed(3)).double()
    scores = logits[0].double() * (1 + progress) - (-uniform.log()).log()
    weights = (scores / (0.27 * (1 - 0.95 * progress))).softmax(-1)
    _, vectors, codebook = choose(logits, progress, seed=3)
    assert torch.allclose(vectors[0].double(), weights @ codebook.double(), atol=1e-4)


def test_codes_of_the_smooth_sampler_are_drawn_from_what_the_filters_leave():
    """With top_k=1 one code is left, whatever the mixture; its logits are otherwise flat."""

    class Watched(SmoothSampler):
        def choose(self, logits, context):
            codes, vectors = super().choose(logits * 1e-3, context)
            assert torch.equal(codes, logits.argmax(-1))
            return codes, vectors

    tiny_sample(tiny_mvar(), [0, 1, 2], [3, 4, 5], sampler=Watched(), top_k=1)
