"""The settings of a run: one dataclass per kind of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, TypeVar

import torch

from mvar_models.checkpoints.locate import FORMS
from mvar_models.config import TransformerConfig
from mvar_models.evaluation.features.network import FEATURES
from mvar_models.records import Must, check_fields, record_of, within
from mvar_models.registry import architecture, generator_names

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SCHEDULES = ("packed", "progressive", "alternating")
# "tokens" is the mean over all tokens; "density" is what HMAR trains with (arXiv 2506.04421).
SCALE_WEIGHTS = ("tokens", "density")
_ACCEPT_PSNR = "Go on where the VQVAE reconstructs the images below 15 dB PSNR."
PERCEPTUAL_NETWORKS = ("lpips", "efficientnet-lite0")

# Beyond these nothing fits into a machine; the counts of steps end where floats stop counting.
_Steps = Annotated[int, within(0, 1 << 53)]
_Count = Annotated[int, within(1, 1 << 31)]
_Weight = Annotated[float, within(0, 1e12)]
_Rate = Annotated[float, Must("of at least 0 and below 1", lambda value: 0 <= value < 1)]

R = TypeVar("R", bound="RunSettings")
T = TypeVar("T")


def setting(
    default: T,
    help: str,
    *,
    shown: str | None = None,
    choices: tuple[str, ...] | Callable[[], list[str]] | None = None,
    flag: str | None = None,
) -> T:
    """A field of a settings class with what the command line says about it.

    Args:
        default: the field's default.
        help: one or two sentences; the default is appended to them.
        shown: the default in words, where it depends on other settings; "" shows none.
        choices: the allowed values, or a function that returns them.
        flag: the option's name, where it is not the field's.
    """
    metadata = {"help": help, "shown": shown, "choices": choices, "flag": flag}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Settings that every kind of training takes. The `config.yaml` of a run folder holds nothing else.

    Each field carries its own help text, which the command line shows.
    """

    kind: ClassVar[str] = ""

    data: str = dataclasses.field(
        metadata={
            "help": "'digits', a folder of images or codes, a .parquet file, or a Hugging Face dataset as"
            " org/name[:split]."
        }
    )
    out: str = dataclasses.field(metadata={"help": "Run folder to create."})
    steps: _Steps = setting(1000, "Optimizer steps.", shown="")
    batch_size: _Count = setting(32, "Images per step, over all processes and micro-batches.")
    lr: Annotated[float, Must("above 0", lambda value: value > 0)] = setting(
        1e-4, "Peak learning rate.", shown="1e-4 x batch size / 256 for a transformer, 1e-3 for a VQVAE"
    )
    weight_decay: _Weight = setting(
        0.05, "Decay of matrices per step, times the learning rate.", shown="0.05, and 0 for a VQVAE"
    )
    betas: tuple[_Rate, _Rate] = setting((0.9, 0.95), "Decays of AdamW's two moments.")
    clip: _Weight = setting(2.0, "Largest norm of the gradient.")
    precision: str = setting(
        "fp32",
        "Type of autocast; weights stay float32. fp16 scales the loss and skips steps that overflow.",
        choices=tuple(PRECISIONS),
    )
    # Samples take this seed and those that follow; a generator takes 64 bits.
    seed: Annotated[int, within(0, (1 << 63) - 1)] = setting(0, "Seed of everything random.")
    save_every: _Steps = setting(500, "Steps between checkpoints; 0 saves only at the end.")
    validate_every: _Steps = setting(500, "Steps between validations; 0 validates only at the end.")
    sample_every: _Steps | None = setting(
        None, "Steps between grids of sampled images; 0 samples only at the end.", shown="never"
    )
    evaluate_every: _Steps | None = setting(
        None,
        "Steps between Frechet distances to held-out images, of reconstructions for a VQVAE, else of"
        " samples; 0 evaluates only at the end.",
        shown="never",
    )
    evaluate_features: str | None = setting(
        None,
        "With --evaluate-every: the feature network, as for `mvar evaluate`.",
        shown='efficientnet-lite0, or pixels where the extra "evaluate" is not installed',
        choices=lambda: list(FEATURES),
    )
    evaluate_weights: str | None = setting(
        None, "With --evaluate-every: file of the feature network's weights, where it needs one."
    )
    evaluate_images: Annotated[int, within(2, 1 << 31)] = setting(
        1000, "With --evaluate-every: images to make, and held-out images to compare with, at most."
    )
    keep: _Count = setting(2, "Checkpoints to keep, besides the best model.")
    device: str = setting("cpu", "Device to run on.", shown="cuda if available, else cpu")
    accumulate: _Count = setting(1, "Micro-batches per process and step, run in sequence to save memory.")
    ema: _Rate | None = setting(
        None,
        "Decay of a moving average of the weights; the average is then what is validated, sampled and saved.",
    )
    fsdp: bool = setting(False, "Shard weights, gradients and moments over the processes.")
    compile: bool = setting(False, "Apply torch.compile to each block.")
    activation_checkpointing: bool = setting(
        False, "Keep only each block's input and recompute the block in backward, to save memory."
    )
    tensorboard: bool = setting(False, "Also write the metrics for TensorBoard.")

    def __post_init__(self) -> None:
        if isinstance(self.device, torch.device):
            object.__setattr__(self, "device", str(self.device))
        check_fields(self)
        for field in dataclasses.fields(self):
            choices, value = field.metadata.get("choices"), getattr(self, field.name)
            allowed = choices() if callable(choices) else choices
            if allowed is not None and value is not None and value not in allowed:
                raise ValueError(f"{field.name} must be one of {', '.join(allowed)}, got {value!r}")

    def to_dict(self) -> dict[str, Any]:
        values = dataclasses.asdict(self).items()
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values}
        return {"kind": self.kind, **plain}

    @classmethod
    def from_dict(cls: type[R], values: dict[str, Any], source: str = "settings") -> R:
        """Return the settings that `to_dict` wrote; `source` names them in the ValueError for others."""
        return record_of({name: value for name, value in values.items() if name != "kind"}, cls, source)


@dataclasses.dataclass(frozen=True)
class TransformerSettings(RunSettings):
    """Settings of a VAR or MVAR, trained from scratch (`init` None, shape given) or from a checkpoint."""

    kind: ClassVar[str] = "transformer"

    arch: str = setting(
        "mvar",
        "Architecture to end with. From a VAR, mvar converts its weights and var trains on as it is.",
        choices=generator_names,
    )
    init: str | None = setting(
        None,
        f"VAR to turn into an MVAR, or model to train further: {FORMS}.",
        flag="--model",
    )
    vqvae: str = setting(
        "vae-digits",
        f"VQVAE that encodes the images: {FORMS}.",
        shown="the checkpoint's; else vae-digits for digits, vae-ch160v4096z32 for other data",
    )
    depth: _Count = setting(16, "Blocks.")
    width: _Count | None = setting(None, "Width of a token.", shown="64 x depth")
    num_heads: _Count | None = setting(None, "Attention heads per block.", shown="depth")
    shared_adaln: bool = setting(False, "One AdaLN projection for all blocks.")
    kernel_size: _Count | None = setting(
        None,
        "Window side of the local scales of an MVAR or Markov-VAR.",
        shown="the checkpoint's if it is an MVAR; else 7 for an MVAR, whole scales for a Markov-VAR",
    )
    dense_scales: _Steps | None = setting(
        None,
        "Leading scales that attend without a window.",
        shown="the checkpoint's if it is an MVAR, else the scales of side 10 or less",
    )
    previous_scales: _Steps | None = setting(
        None,
        "Scales before its own that a token of an MVAR attends to as well.",
        shown="the checkpoint's if it is an MVAR, else 0",
    )
    copies: _Count | None = setting(
        None,
        "Cached variants per image.",
        shown="2, the image and its mirror, or 1 where mirroring could change the class",
    )
    accept_psnr: bool = setting(False, _ACCEPT_PSNR)
    label_drop: _Rate = setting(0.1, "Share of labels replaced by the unconditional class.")
    drop_path: _Rate | None = setting(
        None, "Rate of stochastic depth at the last block, the largest.", shown="0.1 depth / 24"
    )
    label_smoothing: _Rate = setting(0.0, "Label smoothing of the cross-entropy.")
    scale_weights: str = setting(
        "tokens",
        "tokens averages the loss over all tokens, of which the last scale has most; density gives scales the"
        " weights of a normal density, largest in the middle.",
        choices=SCALE_WEIGHTS,
    )
    schedule: str = setting(
        "packed",
        "packed trains all scales in every step; progressive begins with the coarser half and adds the others"
        " one by one until 60 % of the run; alternating, as released for MVAR, trains the dense scales in 8"
        " of every 8 + n steps and each of the n local scales in one.",
        choices=SCHEDULES,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        row = architecture(self.arch)
        kind = row.config_class()
        if self.previous_scales is not None and "previous_scales" not in kind.field_names():
            raise ValueError(f"previous_scales is a setting of an MVAR, which a {row.title} does not have")
        if self.schedule == "alternating" and not kind.alternates:
            raise _cannot_alternate(f"this model is a {kind.model_type}")

    def check_schedule(self, config: TransformerConfig) -> None:
        """Raise ValueError if a model of that configuration cannot be trained by the schedule."""
        reason = config.reason_against_alternating()
        if self.schedule == "alternating" and reason is not None:
            raise _cannot_alternate(reason)


def _cannot_alternate(reason: str) -> ValueError:
    return ValueError(
        "schedule 'alternating' takes turns between the dense and the windowed scales of an MVAR, "
        f"but {reason}; use 'packed'"
    )


@dataclasses.dataclass(frozen=True)
class VQVAESettings(RunSettings):
    """Settings of a VQVAE, trained from scratch or from a checkpoint (`init`), whose shape is then kept."""

    kind: ClassVar[str] = "vqvae"

    vocab_size: _Count = setting(256, "Codes in the codebook.")
    z_channels: _Count = setting(16, "Channels of a code.")
    channels: _Count = setting(32, "Channels of the finest level.")
    channel_multipliers: tuple[_Count, ...] = setting(
        (1, 1, 1), "Channels of each level over --channels, finest first."
    )
    blocks_per_level: _Count = setting(1, "Residual blocks per level.")
    sides: tuple[_Count, ...] = setting((1, 2, 3, 4, 6, 8), "Grid side of each scale, coarse to fine.")
    num_residual_convolutions: _Count = setting(4, "Convolutions that the scales share after the codebook.")
    commitment: _Weight = setting(
        0.25, "Weight of the loss that pulls the encoder's output towards its codes."
    )
    restart_below: _Weight = setting(
        0.05,
        "A code used less than this fraction of uniform use is moved to a random residual of the batch.",
    )
    init: str | None = setting(
        None,
        f"VQVAE to train further, whose shape is kept: {FORMS}.",
        flag="--model",
    )
    perceptual: _Weight = setting(0.0, "Weight of a perceptual loss; 0 turns it off.")
    perceptual_network: str = setting(
        "lpips",
        'Network of the perceptual loss: lpips needs the extra "perceptual" and a download,'
        ' efficientnet-lite0 the extra "evaluate".',
        choices=PERCEPTUAL_NETWORKS,
    )
    adversarial: _Weight = setting(0.0, "Weight of a patch discriminator's loss; 0 turns it off.")
    adversarial_start: _Steps | None = setting(
        None, "First step of the discriminator.", shown="the middle of the run"
    )
    sample_every: _Steps = setting(
        500, "Steps between grids of reconstructions; 0 writes one only at the end."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse(self, "a VQVAE trains whole on each device", "fsdp", "activation_checkpointing")


@dataclasses.dataclass(frozen=True)
class ScorerSettings(RunSettings):
    """Settings of a scorer of LSRS, trained on images and on samples of one model."""

    kind: ClassVar[str] = "scorer"

    model: str = setting("mvar-digits", f"Model whose samples are scored: {FORMS}.", shown="")
    per_class: Annotated[int, within(10, 1 << 31)] = setting(
        300, "Images that the model samples of every class, with its own preset."
    )
    width: _Count = setting(64, "Channels of the scorer's first level.")
    vqvae: str = setting("", f"VQVAE that encodes the images: {FORMS}.", shown="the model's own")
    copies: _Count = setting(1, "Cached variants per image.")
    accept_psnr: bool = setting(False, _ACCEPT_PSNR)

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse(self, "a scorer trains whole", "fsdp", "activation_checkpointing")
        _refuse(self, "a scorer makes no images", "sample_every", "evaluate_every")


def _refuse(settings: RunSettings, reason: str, *names: str) -> None:
    for name in names:
        if getattr(settings, name):
            raise ValueError(f"{name} is for other runs: {reason}, so leave it out")
