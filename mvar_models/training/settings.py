"""The settings of a run: one dataclass per kind of training."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, TypeVar

import torch

from mvar_models.config import residual_assignment

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SCHEDULES = ("packed", "alternating")

_LEAST = {
    "batch_size": 1,
    "keep": 1,
    "accumulate": 1,
    "steps": 0,
    "save_every": 0,
    "validate_every": 0,
    "sample_every": 0,
}

R = TypeVar("R", bound="RunSettings")


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """What every kind of training takes; a run folder's config.yaml is this and nothing else.

    steps: optimizer steps. batch_size: pictures a step, over all processes and micro-batches. lr: peak learning rate. save_every,
    validate_every, sample_every: steps between two; 0 is only at the end, and None (samples) never. keep: checkpoints kept. precision:
    "fp32", "bf16" or "fp16" (autocast; weights stay float32; fp16 scales the loss and skips steps that overflow). accumulate: micro-batches
    of a process, one after the other. ema: decay of the weights' moving average; with it validation, samples and the saved model are the
    average's. fsdp: shard weights, gradients and moments over the processes. compile: torch.compile for each block.
    activation_checkpointing: keep each block's input only, and run the block again in backward.
    """

    kind: ClassVar[str] = ""

    data: str
    out: str
    steps: int = 1000
    batch_size: int = 32
    lr: float = 1e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 2.0
    precision: str = "fp32"
    seed: int = 0
    save_every: int = 500
    validate_every: int = 500
    sample_every: int | None = None
    keep: int = 2
    device: str = "cpu"
    accumulate: int = 1
    ema: float | None = None
    fsdp: bool = False
    compile: bool = False
    activation_checkpointing: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ValueError(f"ema must be between 0 and 1, got {self.ema}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, got {self.lr}")

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **dataclasses.asdict(self), "betas": list(self.betas)}

    @classmethod
    def from_dict(cls: type[R], values: dict[str, Any]) -> R:
        return cls(**{name: value for name, value in values.items() if name != "kind"})


@dataclasses.dataclass(frozen=True)
class TransformerSettings(RunSettings):
    """VAR or MVAR from nothing (`init` None, shape given) or from a checkpoint.

    init: what `from_pretrained` takes; a VAR becomes an MVAR when `arch` is "mvar". vqvae: likewise. kernel_size, dense_scales: None is the
    checkpoint's where it is an MVAR; else 7, and the scales of side 10 or less (as released: 8 at 256 px, 6 at 512 px). copies: cached
    variants of a picture; None is the picture and its mirror where classes allow one.
    label_drop: share of labels replaced by the unconditional class. drop_path: largest rate of stochastic depth, reached at the last block;
    None is 0.1 depth / 24. schedule: "packed" trains all scales of a batch at once; "alternating" trains, out of every 8 + local scales
    iterations, 8 on the dense scales and one on each local scale, as released.
    """

    kind: ClassVar[str] = "transformer"

    arch: str = "mvar"
    init: str | None = None
    vqvae: str = "vae-digits"
    depth: int = 16
    width: int | None = None
    num_heads: int | None = None
    shared_adaln: bool = False
    kernel_size: int | None = None
    dense_scales: int | None = None
    copies: int | None = None
    label_drop: float = 0.1
    drop_path: float | None = None
    label_smoothing: float = 0.0
    schedule: str = "packed"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.arch not in ("var", "mvar"):
            raise ValueError(f"arch must be 'var' or 'mvar', got {self.arch!r}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if self.schedule == "alternating" and self.arch == "var":
            raise ValueError(
                "schedule 'alternating' trains scales apart, which only MVAR can; use 'packed' for VAR"
            )
        for name in ("label_drop", "drop_path", "label_smoothing"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")


@dataclasses.dataclass(frozen=True)
class VQVAESettings(RunSettings):
    """A VQVAE from nothing, or from a checkpoint (`init`), whose shape then counts in place of the one given here.

    commitment: weight of the encoder's pull towards its codes. restart_below: a code whose moving share of a scale-averaged draw falls
    below this fraction of the uniform share is put on a random residual of the batch. perceptual: weight of LPIPS; 0 is without.
    adversarial: weight of the adversarial loss, over the balance of gradients; 0 is without. adversarial_start: its first step; None is the
    middle of the run. sample_every: steps between pictures of reconstructions; 0 is only at the end.
    """

    kind: ClassVar[str] = "vqvae"

    vocab_size: int = 256
    z_channels: int = 16
    channels: int = 32
    channel_multipliers: tuple[int, ...] = (1, 1, 1)
    blocks_per_level: int = 1
    sides: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    num_residual_convolutions: int = 4
    commitment: float = 0.25
    restart_below: float = 0.05
    init: str | None = None
    perceptual: float = 0.0
    adversarial: float = 0.0
    adversarial_start: int | None = None
    sample_every: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "channel_multipliers", tuple(self.channel_multipliers))
        object.__setattr__(self, "sides", tuple(self.sides))
        for name in ("commitment", "perceptual", "adversarial", "adversarial_start", "sample_every"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")

    def to_dict(self) -> dict[str, Any]:
        return {
            **super().to_dict(),
            "channel_multipliers": list(self.channel_multipliers),
            "sides": list(self.sides),
        }

    def residual_convolution_of_scale(self) -> tuple[int, ...]:
        return residual_assignment(len(self.sides), self.num_residual_convolutions)
