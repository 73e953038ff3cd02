"""The pipeline or the transformer that fits a checkpoint, whatever its architecture."""

from __future__ import annotations

import os
from typing import Any

from mvar_models.checkpoints.checkpoint import Checkpoint
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.networks.vqvae import VQVAE
from mvar_models.pipeline.base import Pipeline, opened
from mvar_models.registry import architecture


def pipeline_for(
    name: str | os.PathLike[str] | Checkpoint, arch: str | None = None, **options: Any
) -> Pipeline:
    """Load the pipeline that fits a checkpoint.

    Args:
        name: As for `Pipeline.from_pretrained`.
        arch: What to read a bare released state dict as, which is the same for all architectures.
        options: As for `Pipeline.from_pretrained`.

    Raises:
        ValueError: nothing tells which architecture the checkpoint is of, or it draws no images.
    """
    checkpoint = opened(name, options)
    pipeline: type[Pipeline] = checkpoint.architecture(arch).pipeline_class()
    return pipeline.from_pretrained(checkpoint, **options)


def model_for(
    name: str | os.PathLike[str] | Checkpoint, arch: str | None = None, **options: Any
) -> ScaleTransformer:
    """Load the transformer of a checkpoint; see `pipeline_for` for the arguments and errors."""
    checkpoint = opened(name, options)
    network: type[ScaleTransformer] = checkpoint.architecture(arch).network_class()
    return network.from_pretrained(checkpoint, **options)


def pipeline_of(model: ScaleTransformer, vqvae: VQVAE) -> Pipeline:
    """Join a transformer and its VQVAE in the pipeline of the transformer's architecture."""
    pipeline: type[Pipeline] = architecture(model.config.model_type).pipeline_class()
    return pipeline(model, vqvae)
