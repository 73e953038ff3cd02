"""From a run's settings to the network that it trains: new, or from a checkpoint."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import torch

from mvar_models.checkpoints.checkpoint import Checkpoint, open_checkpoint
from mvar_models.config import RELEASED_SIDES, VQVAEConfig, released_dense_scales
from mvar_models.data.class_names import listed, same_classes
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.networks.vqvae import VQVAE
from mvar_models.registry import Architecture, architecture
from mvar_models.training.settings import TransformerSettings, VQVAESettings

logger = logging.getLogger(__name__)

_KERNEL_SIZE = 7
# Settings of a windowed architecture that a checkpoint of another one does not hold.
_WINDOWS = ("kernel_size", "dense_scales")
_PREVIOUS = "previous_scales"
# Settings that a VQVAE's run shares with the model's configuration.
_VQVAE_SHAPE = (
    "vocab_size",
    "z_channels",
    "channels",
    "channel_multipliers",
    "blocks_per_level",
    "sides",
    "num_residual_convolutions",
)


def load_initial(settings: TransformerSettings, opened: Checkpoint | None = None) -> ScaleTransformer | None:
    """Load the initial checkpoint, converting VAR to MVAR if needed. None when training from scratch.

    Args:
        settings: The run's settings; `init` names the checkpoint.
        opened: That checkpoint, where it is open already.

    Raises:
        ValueError: it is another kind of model, or an MVAR with other windows than the settings ask for.
    """
    if settings.init is None:
        return None
    row = architecture(settings.arch)
    network = row.network_class()
    # Released files of VAR and MVAR hold the same tensors. One that does not name its kind is read as the
    # kind to convert from, or else as the kind asked for.
    checkpoint = opened or open_checkpoint(settings.init)
    kind = checkpoint.architecture((row.starts_from or (row.name,))[0]).name
    if kind in row.starts_from:
        parent = architecture(kind).network_class().from_pretrained(checkpoint)
        converted: ScaleTransformer = getattr(network, f"from_{kind}")(
            parent, **windows_for(row, settings, parent.config.sides)
        )
        return converted
    model: ScaleTransformer = network.from_pretrained(checkpoint)
    previous_scales = _previous_scales(row, settings)
    if previous_scales is not None and previous_scales != getattr(model.config, _PREVIOUS):
        # The parameters are the same, so any checkpoint can be trained to see more or fewer scales.
        model = getattr(model, f"with_{_PREVIOUS}")(previous_scales)
    for name in _WINDOWS if _has_windows(row) else ():
        asked, actual = getattr(settings, name), getattr(model.config, name)
        if asked is not None and asked != actual:
            raise ValueError(
                f"{settings.init} is an {row.title} with {name} {actual}, not {asked}; "
                f"leave {name} out to train it further"
            )
    return model


def check_codes(model: ScaleTransformer, vqvae: VQVAE, settings: TransformerSettings) -> None:
    """Raise ValueError unless the checkpoint's codes have the shape of the VQVAE's."""
    for name in ("sides", "vocab_size", "z_channels"):
        if getattr(model.config, name) != getattr(vqvae.config, name):
            raise ValueError(f"{settings.vqvae} does not fit {settings.init}: {name} differs")


def check_new_transformer(settings: TransformerSettings, sides: Sequence[int]) -> None:
    """Raise ValueError if a new transformer for that pyramid cannot be trained by the run's schedule."""
    if settings.schedule == "alternating":
        row = architecture(settings.arch)
        settings.check_schedule(row.config_class()(sides=sides, **windows_for(row, settings, sides)))


def build_transformer(
    settings: TransformerSettings,
    vqvae: VQVAE,
    class_names: tuple[str, ...],
    resuming: bool = False,
    checkpoint: ScaleTransformer | None = None,
) -> ScaleTransformer:
    """Build the transformer of a run, with the classes of the data.

    Args:
        settings: The run's settings.
        vqvae: The VQVAE whose codes it predicts.
        class_names: One name per class of the data.
        resuming: Do not repeat the warning about replaced classes, which the run gave when it began.
        checkpoint: The result of `load_initial(settings)`, where it is at hand.

    Raises:
        ValueError: see `load_initial` and `check_codes`.
    """
    model = checkpoint or load_initial(settings) or _new_transformer(settings, vqvae, class_names)
    check_codes(model, vqvae, settings)
    # A checkpoint may bring previous scales or windows that the settings do not name.
    settings.check_schedule(model.config)
    before = model.config.class_names
    if len(class_names) != model.config.num_classes or not same_classes(class_names, before or class_names):
        if not resuming:
            logger.warning(
                "the classes of the data (%d: %s) are not those of %s (%d), so class embeddings are "
                "initialised (seed %d)",
                len(class_names),
                listed(range(len(class_names)), class_names),
                settings.init,
                model.config.num_classes,
                settings.seed,
            )
        torch.manual_seed(settings.seed)
        model.replace_classes(len(class_names), class_names)
    # A run saves its VQVAE inside the model's folder, where a pipeline looks only if the config names none.
    model.config = model.config.replace(class_names=class_names, vqvae=None)
    return model.to(settings.device)


def build_vqvae(settings: VQVAESettings) -> VQVAE:
    """Build the VQVAE of a run: a new one, or the one that `init` names."""
    if settings.init is not None:
        return VQVAE.from_pretrained(settings.init, device=settings.device)
    torch.manual_seed(settings.seed)
    return VQVAE(new_vqvae_config(settings)).to(settings.device)


def new_vqvae_config(settings: VQVAESettings) -> VQVAEConfig:
    """Return the model's part of a run's settings."""
    return VQVAEConfig(**{name: getattr(settings, name) for name in _VQVAE_SHAPE})


def released_vqvae_shape(resolution: int) -> dict[str, Any]:
    """Return settings of a run that give the released VQVAE (109 M parameters) for images of that side.

    Raises:
        ValueError: the resolution is not 256, 512 or 1024.
    """
    sides = RELEASED_SIDES.get(resolution)
    if sides is None:
        raise ValueError(
            f"resolution must be 256, 512 or 1024, got {resolution!r}; "
            "for others give sides and channel_multipliers"
        )
    shape = dataclasses.asdict(VQVAEConfig(sides=sides))
    return {name: shape[name] for name in _VQVAE_SHAPE}


def _new_transformer(
    settings: TransformerSettings, vqvae: VQVAE, class_names: tuple[str, ...]
) -> ScaleTransformer:
    row = architecture(settings.arch)
    torch.manual_seed(settings.seed)
    config = row.config_class()(
        depth=settings.depth,
        width=settings.width,
        num_heads=settings.num_heads,
        shared_adaln=settings.shared_adaln,
        num_classes=len(class_names),
        class_names=class_names,
        vocab_size=vqvae.config.vocab_size,
        z_channels=vqvae.config.z_channels,
        sides=vqvae.config.sides,
        top_k=0,
        **windows_for(row, settings, vqvae.config.sides),
    )
    model: ScaleTransformer = row.network_class()(config)
    return model


def _has_windows(row: Architecture) -> bool:
    return set(_WINDOWS) <= set(row.config_class().field_names())


def windows_for(row: Architecture, settings: TransformerSettings, sides: Sequence[int]) -> dict[str, int]:
    """Return the windows asked for, by default the released ones.

    Empty for an architecture without windows, and for one that has none unless asked.
    """
    previous_scales = _previous_scales(row, settings)
    if not _has_windows(row) or (settings.kernel_size is None and row.config_class()().kernel_size is None):
        return {}
    dense, kernel_size = settings.dense_scales, settings.kernel_size
    if dense is None:
        dense = released_dense_scales(sides)
    if kernel_size is None:
        kernel_size = _KERNEL_SIZE
    if all(side <= kernel_size for side in sides[dense:]):
        logger.warning(
            "no scale has windows: all attend to the whole grid; "
            "fewer --dense-scales or a smaller --kernel-size give some"
        )
    windows = {"kernel_size": kernel_size, "dense_scales": dense}
    return windows if previous_scales is None else {**windows, _PREVIOUS: previous_scales}


def _previous_scales(row: Architecture, settings: TransformerSettings) -> int | None:
    """Return the previous scales asked for, or None.

    Raises:
        ValueError: the architecture sees none, or always the same.
    """
    if settings.previous_scales is not None and _PREVIOUS not in row.config_class().field_names():
        raise ValueError(f"{_PREVIOUS} is a setting of an MVAR, which a {row.title} does not have")
    return settings.previous_scales
