"""A tiny MVAR with previous scales, shared by tests of networks, sampling and pipelines."""

import torch

from mvar_models import MVAR, MVARConfig

SIDES = (1, 2, 3, 4, 6)
SHAPE = dict(depth=2, width=32, num_heads=4, num_classes=3, vocab_size=16, z_channels=8, sides=SIDES)


def adjacent(previous_scales, kernel_size=3, dense_scales=1, seed=0):
    torch.manual_seed(seed)
    config = MVARConfig(
        **SHAPE, kernel_size=kernel_size, dense_scales=dense_scales, previous_scales=previous_scales
    )
    model = MVAR(config).eval()
    # Freshly initialised heads are almost uniform, and gates almost closed.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model
