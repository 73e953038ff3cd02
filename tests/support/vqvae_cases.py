"""Training tasks of a VQVAE that fits digits of 16 px."""

import torch

from mvar_models import VQVAE, VQVAEConfig
from mvar_models.data.digits import Digits
from mvar_models.training.settings import VQVAESettings
from mvar_models.training.vqvae_task import VQVAETask

TINY = dict(vocab_size=24, z_channels=4, channels=32, sides=(1, 2, 4))


def small_vqvae():
    """Fits the digits at 16 px: sides 1, 2, 4."""
    torch.manual_seed(1)
    return VQVAE(VQVAEConfig(**TINY, channel_multipliers=(1, 1, 1), blocks_per_level=1)).eval()


def task(source=None, **settings):
    source = source or Digits(16)
    config = VQVAESettings(
        **{"data": "digits", "out": "", "steps": 1000, "batch_size": 8, **TINY, **settings}
    )
    return VQVAETask(small_vqvae(), source, source.train, source.held_out, config)
