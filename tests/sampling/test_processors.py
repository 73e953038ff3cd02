"""SpatialGuidance against its formula, and its independence of batches, chunks and earlier calls."""

import pytest
import torch
import torch.nn.functional as F

from mvar_models.sampling import sampler as module
from mvar_models.sampling.hooks import SpatialGuidance

from tiny_models import tiny_mvar, tiny_sample, tiny_var

LABELS, SEEDS = [0, 2, 1, 1], [7, 8, 9, 10]


class Recorded(SpatialGuidance):
    """Keeps what went in and what came out at each scale."""

    def __init__(self, beta):
        super().__init__(beta)
        self.seen = {}

    def __call__(self, logits, context):
        out = super().__call__(logits, context)
        self.seen.setdefault(context.scale, []).append((logits, out))
        return out


@pytest.mark.parametrize("make", [tiny_var, tiny_mvar])
def test_it_adds_what_the_scale_before_did_not_say(make):
    guide = Recorded(0.5)
    tiny_sample(make(), LABELS, SEEDS, processors=[guide])
    logits, outs = ([torch.cat([pair[i] for pair in guide.seen[s]]) for s in range(3)] for i in (0, 1))
    assert torch.equal(outs[0], logits[0])
    for scale, side in ((1, 2), (2, 4)):
        before = logits[scale - 1].transpose(1, 2).unflatten(2, (side // 2, side // 2))
        low = F.interpolate(before, size=(side, side), mode="bilinear").flatten(2).transpose(1, 2)
        assert torch.allclose(outs[scale], 1.5 * logits[scale] - 0.5 * low, atol=1e-5)


def test_beta_zero_changes_nothing():
    expected = tiny_sample(tiny_mvar(), LABELS, SEEDS).indices
    assert torch.equal(
        tiny_sample(tiny_mvar(), LABELS, SEEDS, processors=[SpatialGuidance(0.0)]).indices, expected
    )
    guided = tiny_sample(tiny_mvar(), LABELS, SEEDS, processors=[SpatialGuidance(2.0)]).indices
    assert not torch.equal(guided, expected)


def test_neither_batches_nor_earlier_calls_matter(monkeypatch):
    """Nor which images' logits exist at a time."""
    guide = SpatialGuidance(2.0)
    together = tiny_sample(tiny_mvar(), LABELS, SEEDS, processors=[guide]).indices
    tiny_sample(tiny_mvar(), LABELS, SEEDS, processors=[guide], scales=range(2))
    alone = [
        tiny_sample(tiny_mvar(), [label], [seed], processors=[guide]).indices
        for label, seed in zip(LABELS, SEEDS)
    ]
    assert torch.equal(torch.cat(alone), together)
    monkeypatch.setattr(module, "_LOGITS_AT_A_TIME", 3 * 16 * 24)
    assert torch.equal(tiny_sample(tiny_mvar(), LABELS, SEEDS, processors=[guide]).indices, together)


def test_the_first_scale_drawn_has_nothing_before_it():
    """Also when an earlier call ended just there."""
    guide, f_hat = SpatialGuidance(2.0), torch.randn(4, 4, 4, 4)
    tiny_sample(tiny_mvar(), LABELS, SEEDS, processors=[guide], scales=range(2))
    found = tiny_sample(tiny_mvar(), LABELS, SEEDS, processors=[guide], scales=range(2, 3), f_hat=f_hat)
    plain = tiny_sample(tiny_mvar(), LABELS, SEEDS, scales=range(2, 3), f_hat=f_hat)
    assert torch.equal(found.indices, plain.indices)
