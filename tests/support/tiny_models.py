"""Small untrained models that run in milliseconds: 16 px images, 3 classes, sides 1, 2, 4."""

import dataclasses

import torch

from mvar_models import (
    MVAR,
    VAR,
    VQVAE,
    MarkovVAR,
    MarkovVARConfig,
    MVARConfig,
    VARConfig,
    VQVAEConfig,
)
from mvar_models.sampling.sampler import sample
from mvar_models.sampling.settings import SamplingSettings

SIDES = (1, 2, 4)
NAMES = ("ant", "bee", "cat")


def tiny_vqvae():
    torch.manual_seed(1)
    config = VQVAEConfig(
        vocab_size=24,
        z_channels=4,
        channels=32,
        channel_multipliers=(1, 1, 1),
        blocks_per_level=1,
        sides=SIDES,
    )
    return VQVAE(config).eval()


def _shape():
    return dict(
        depth=2,
        width=32,
        num_heads=2,
        num_classes=3,
        vocab_size=24,
        z_channels=4,
        sides=SIDES,
        class_names=NAMES,
    )


def _sharpen(model):
    """Untrained heads are nearly uniform; spread them so that filters and classes matter."""
    torch.manual_seed(2)
    with torch.no_grad():
        model.head.weight.normal_()
        model.class_embedding.weight.normal_()
    return model.eval()


def tiny_var():
    torch.manual_seed(0)
    return _sharpen(VAR(VARConfig(**_shape())))


def tiny_mvar():
    torch.manual_seed(0)
    return _sharpen(MVAR(MVARConfig(**_shape(), kernel_size=3, dense_scales=2)))


def tiny_markov_var(**changes):
    """A history pool needs a width of 128 at least."""
    torch.manual_seed(0)
    config = MarkovVARConfig(**{**_shape(), "width": 128, "mlp_ratio": 1.0, **changes})
    return _sharpen(MarkovVAR(config))


def tiny_sample(model, labels, seeds, **options):
    """`sample` with guidance and filters on, one label and seed per image."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    settings, options = split_options({"top_k": 8, **options})
    return sample(model, tiny_vqvae().quantizer, torch.tensor(labels), generators, settings, **options)


def split_options(options):
    """Return the settings among keyword arguments, and the others; guidance is on, filters are off."""
    names = {field.name for field in dataclasses.fields(SamplingSettings)}
    given = {name: value for name, value in options.items() if name in names}
    others = {name: value for name, value in options.items() if name not in names}
    return SamplingSettings(**{"guidance_scale": 1.5, "top_k": 0, "top_p": 0.0, **given}), others
