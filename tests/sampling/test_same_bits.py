"""Sampling gives the bits of a plain loop over the scales, whatever it computes once, shares or leaves out.

The plain loop runs here and now, as the last bits of a float depend on the CPU; `test_same_digits.py` holds
what does not, digests of codes.
"""

from functools import cache

import pytest
import torch

from benchmarks.peers.plain_loop import plain_sample
from mvar_models import MVAR, VAR, MVARConfig, VARConfig
from mvar_models.pipeline import pipeline_for
from mvar_models.sampling.sampler import Sampler, sample
from mvar_models.sampling.samplers import draw, filter_logits
from mvar_models.sampling.settings import SamplingSettings

from tiny_models import SIDES, tiny_mvar, tiny_var, tiny_vqvae


class Sorting(Sampler):
    """Draws by the functions that the plain loop draws by, which are the definition."""

    def choose(self, logits, context):
        settings = context.settings
        codes = draw(filter_logits(logits, settings.top_k, settings.top_p), context.uniform)
        return codes, context.quantizer.codebook(codes)


def shared_modulation(kind, config, **settings):
    torch.manual_seed(0)
    small = dict(depth=3, width=32, num_heads=2, num_classes=3, vocab_size=24, z_channels=4, sides=SIDES)
    model = kind(config(**small, shared_adaln=True, **settings)).eval()
    with torch.no_grad():
        model.head.weight.normal_()
    return model


TINY = {
    "var": tiny_var,
    "mvar": tiny_mvar,
    "var, shared": lambda: shared_modulation(VAR, VARConfig),
    "mvar, dot products": lambda: shared_modulation(
        MVAR, MVARConfig, kernel_size=3, dense_scales=2, cosine_attention=False
    ),
}


@cache
def networks(name):
    if name in TINY:
        return TINY[name](), tiny_vqvae().quantizer
    pipeline = pipeline_for(name)
    return pipeline.model, pipeline.vqvae.quantizer


def generators(seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def check_bits(name, seeds, batch_size, **options):
    model, quantizer = networks(name)
    settings = SamplingSettings(**options, sampler=Sorting())
    for part in torch.tensor(seeds).split(batch_size):
        labels = part % model.config.num_classes
        with torch.no_grad():
            codes, f_hat, logits = plain_sample(model, quantizer, labels, generators(part.tolist()), settings)
        found = sample(model, quantizer, labels, generators(part.tolist()), settings)
        assert torch.equal(found.indices, codes)
        assert torch.equal(found.f_hat, f_hat)
        assert torch.equal(found.final_logits, logits)


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 1.5])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("name", TINY)
def test_tiny_models(name, batch_size, guidance_scale):
    check_bits(name, range(9), batch_size, guidance_scale=guidance_scale, top_k=8, top_p=0.9)


@pytest.mark.parametrize("guidance_scale", [0.0, 4.0])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("name", ["var-digits", "mvar-digits"])
def test_embedded_models(name, batch_size, guidance_scale):
    check_bits(name, range(8), batch_size, guidance_scale=guidance_scale, top_k=200, top_p=0.95)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("name", ["var-digits", "mvar-digits"])
def test_images_of_the_pipeline(name, together):
    """One by one and in batches, up to the float32 pixels."""
    pipeline = pipeline_for(name)
    found = pipeline(
        [3, 7, 1], seed=5, sampler=Sorting(), batch_invariant=not together, output_type="pt", batch_size=3
    ).images
    for rows in ([0, 1, 2],) if together else ([0], [1], [2]):
        labels = torch.tensor([3, 7, 1])[rows]
        with torch.no_grad():
            _, f_hat, _ = plain_sample(
                pipeline.model,
                pipeline.vqvae.quantizer,
                labels,
                generators([5 + row for row in rows]),
                SamplingSettings.of(pipeline.model.config),
            )
            images = (pipeline.vqvae.decode_latents(f_hat) + 1) / 2
        assert torch.equal(found[rows], images)
