"""From a run's settings to the network that it trains: new, or from a checkpoint."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mvar_models.checkpoints.checkpoint import Checkpoint
from mvar_models.checkpoints.zoo import RELEASED_VQVAE
from mvar_models.config import RELEASED_SIDES, SIDES_256, TransformerConfig, VQVAEConfig
from mvar_models.data.class_names import listed, same_classes
from mvar_models.data.open import DIGITS
from mvar_models.data.source import ImageSource
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.networks.vqvae import VQVAE
from mvar_models.pipeline import fitted
from mvar_models.pipeline.identity import network_identity
from mvar_models.registry import architecture
from mvar_models.tokens.folder import TokenFolder
from mvar_models.training.settings import TransformerSettings, VQVAESettings

logger = logging.getLogger(__name__)

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
# Side of the image in pixels -> grid side of each scale, channel multipliers; that of 64 px is vae-emoji's.
_SMALL_SHAPES = {
    32: ((1, 2, 3, 4, 6, 8), (1, 2, 2)),
    64: (SIDES_256, (1, 2, 2)),
    128: (SIDES_256, (1, 2, 2, 4)),
}


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
    network = architecture(settings.arch).network_class()
    model: ScaleTransformer = network.from_checkpoint(opened or settings.init, **_windows(settings))
    return model


def build_transformer(
    settings: TransformerSettings,
    vqvae: VQVAE,
    class_names: tuple[str, ...],
    resuming: bool = False,
    initial: ScaleTransformer | None = None,
) -> ScaleTransformer:
    """Build the transformer of a run, with the classes of the data, on the CPU.

    Args:
        settings: The run's settings.
        vqvae: The VQVAE whose codes it predicts.
        class_names: The classes of the data.
        resuming: Do not repeat the warnings that the run gave when it began.
        initial: The result of `load_initial(settings)`, where it is at hand.

    Raises:
        ValueError: the checkpoint does not fit (see `load_initial`), or the schedule does not fit the model.
    """
    model = initial or load_initial(settings) or _new_transformer(settings, vqvae, class_names)
    for name in ("sides", "vocab_size", "z_channels"):
        if getattr(model.config, name) != getattr(vqvae.config, name):
            raise ValueError(f"{settings.vqvae} does not fit {settings.init}: {name} differs")
    # A checkpoint may bring previous scales or windows that the settings do not name.
    settings.check_schedule(model.config)
    if not resuming:
        _warn_without_windows(model.config)
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
    return model


def new_config(
    settings: TransformerSettings, codes: VQVAEConfig, class_names: Sequence[str]
) -> TransformerConfig:
    """Return the configuration of a model from scratch, for the codes of that VQVAE."""
    kind = architecture(settings.arch).config_class()
    config: TransformerConfig = kind(
        depth=settings.depth,
        width=settings.width,
        num_heads=settings.num_heads,
        shared_adaln=settings.shared_adaln,
        num_classes=len(class_names),
        class_names=class_names,
        vocab_size=codes.vocab_size,
        z_channels=codes.z_channels,
        sides=codes.sides,
        top_k=0,
        **kind.settings_for(codes.sides, **_windows(settings)),
    )
    return config


def _new_transformer(
    settings: TransformerSettings, vqvae: VQVAE, class_names: tuple[str, ...]
) -> ScaleTransformer:
    config = new_config(settings, vqvae.config, class_names)
    torch.manual_seed(settings.seed)
    model: ScaleTransformer = architecture(settings.arch).network_class()(config)
    return model


def _windows(settings: TransformerSettings) -> dict[str, int | None]:
    """Return the run's settings of windows, as far as its architecture has them."""
    windows = {
        "kernel_size": settings.kernel_size,
        "dense_scales": settings.dense_scales,
        "previous_scales": settings.previous_scales,
    }
    known = architecture(settings.arch).config_class().field_names()
    return {name: value for name, value in windows.items() if name in known}


def _warn_without_windows(config: Any) -> None:
    kernel_size = getattr(config, "kernel_size", None)
    if kernel_size is not None and all(side <= kernel_size for side in config.sides[config.dense_scales :]):
        logger.warning(
            "no scale has windows: all attend to the whole grid; "
            "fewer --dense-scales or a smaller --kernel-size give some"
        )


def build_vqvae(settings: VQVAESettings) -> VQVAE:
    """Build the VQVAE of a run: a new one, or the one that `init` names."""
    if settings.init is not None:
        return VQVAE.from_pretrained(settings.init, device=settings.device)
    torch.manual_seed(settings.seed)
    return VQVAE(new_vqvae_config(settings)).to(settings.device)


def new_vqvae_config(settings: VQVAESettings) -> VQVAEConfig:
    """Return the model's part of a run's settings."""
    return VQVAEConfig(**{name: getattr(settings, name) for name in _VQVAE_SHAPE})


def vqvae_shape(resolution: int) -> dict[str, Any]:
    """Return settings of a run that give a VQVAE for images of that side.

    At 256 px and above it is the released one (109 M parameters), below one as small as vae-emoji.

    Raises:
        ValueError: the resolution is none of these.
    """
    if resolution in _SMALL_SHAPES:
        sides, multipliers = _SMALL_SHAPES[resolution]
        return {"vocab_size": 1024, "sides": sides, "channel_multipliers": multipliers}
    sides = RELEASED_SIDES.get(resolution, ())
    if not sides:
        *most, last = [*_SMALL_SHAPES, *RELEASED_SIDES]
        raise ValueError(
            f"resolution must be {', '.join(map(str, most))} or {last}, got {resolution!r}; "
            "for others give sides and channel_multipliers"
        )
    shape = dataclasses.asdict(VQVAEConfig(sides=sides))
    return {name: shape[name] for name in _VQVAE_SHAPE}


def describe_vqvae(settings: VQVAESettings) -> str:
    """Return one line that says what is going to be trained."""
    if settings.init is not None:
        return f"training {settings.init} further"
    shape = new_vqvae_config(settings)
    return (
        f"a new VQVAE for images of {shape.resolution} px: {len(shape.sides)} scales, "
        f"{shape.length} codes of {shape.vocab_size}"
    )


def resolved(
    settings: TransformerSettings, data: ImageSource | TokenFolder, initial: Checkpoint | None
) -> tuple[TransformerSettings, VQVAE]:
    """Return the settings with the shape and the windows that the model will have, and its VQVAE.

    The checkpoints are opened for it, so that what is wrong with them is said before a folder is made.
    """
    vqvae, model = VQVAE.from_pretrained(settings.vqvae), load_initial(settings, initial)
    if model is None:
        vqvae = fitted(vqvae, data.index.sides) if isinstance(data, TokenFolder) else vqvae
        config = new_config(settings, vqvae.config, data.class_names)
    else:
        config = model.config
        vqvae = fitted(vqvae, config.sides)
    shape = dataclasses.asdict(config)
    names = {field.name for field in dataclasses.fields(settings)} & shape.keys() - {"vqvae"}
    return dataclasses.replace(settings, **{name: shape[name] for name in names}), vqvae


def default_vqvae(data: str) -> str:
    """Return the name in the zoo of the VQVAE for these images."""
    return "vae-digits" if data == DIGITS else RELEASED_VQVAE


def same_vqvae(own: str, vqvae: str) -> bool:
    """Whether two names, folders or files are VQVAEs of the same codes; their pyramids may differ."""
    if Path(own).resolve() == Path(vqvae).resolve():
        return True
    try:
        original = VQVAE.from_pretrained(own)
    except (OSError, ValueError):  # it is needed for a warning only
        return False
    given = VQVAE.from_pretrained(vqvae)
    return network_identity(fitted(original, given.config.sides)) == network_identity(given)
