"""The smooth sampler adds mixtures of codes to f_hat, repeatably; they harden from coarse to fine."""

import torch

from mvar_models.sampling.hooks import Choice
from mvar_models.sampling.smooth import SmoothSampler

from tiny_models import tiny_mvar, tiny_sample, tiny_vqvae


def choose(logits, progress, seed=0):
    quantizer = tiny_vqvae().quantizer
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(logits))]
    uniform = torch.full(logits.shape[:2], 0.5)
    labels, f_hat = torch.zeros(len(logits), dtype=torch.int64), torch.zeros(len(logits), 4, 4, 4)
    choice = Choice(
        scale=0,
        progress=progress,
        images=slice(0, len(logits)),
        uniform=uniform,
        generators=generators,
        top_k=0,
        top_p=0.0,
        quantizer=quantizer,
        labels=labels,
        f_hat=f_hat,
        scales=range(3),
    )
    with torch.no_grad():
        codes, vectors = SmoothSampler().choose(logits, choice)
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
