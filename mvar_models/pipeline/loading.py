"""Checkpoints and VQVAEs as a pipeline needs them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from mvar_models.checkpoints.checkpoint import Checkpoint, open_checkpoint
from mvar_models.config import RELEASED_SIDES
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.networks.vqvae import VQVAE

# Options of `from_pretrained` that say where a checkpoint is rather than what to make of it.
_WHERE = ("subfolder", "revision", "cache_dir", "local_files_only", "token")


def opened(name: str | os.PathLike[str] | Checkpoint, options: dict[str, Any]) -> Checkpoint:
    """Open a checkpoint with the options that say where it is, which are then removed from `options`."""
    where = {key: options.pop(key) for key in _WHERE if key in options}
    return open_checkpoint(name, **where)


def check_fit(model: ScaleTransformer, vqvae: VQVAE) -> None:
    """Raise ValueError unless the VQVAE has the codes and the pyramid that the model draws."""
    for name in ("sides", "vocab_size", "z_channels"):
        ours, theirs = getattr(model.config, name), getattr(vqvae.config, name)
        if ours != theirs:
            raise ValueError(f"the VQVAE does not fit the model: {name} is {theirs}, the model has {ours}")


def fitted(vqvae: VQVAE, sides: Sequence[int]) -> VQVAE:
    """Return the VQVAE for a model of that pyramid.

    The weights of a released VQVAE serve every resolution, so it takes those sides; others stay as they are.
    """
    if vqvae.config.sides == tuple(sides) or vqvae.config.sides not in RELEASED_SIDES.values():
        return vqvae
    return vqvae.with_sides(sides)
