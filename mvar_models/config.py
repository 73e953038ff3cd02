"""Model configurations: dataclasses that are written to and read from config.json.

The defaults are the released 256 px models; `sides` and the shared residual convolutions are stored explicitly, because float32 and float64
disagree on two of ten scales (see `residual_assignment`).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch

from mvar_kernels import Pyramid

SIDES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SIDES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
SIDES_1024 = (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)

CONFIG_NAME = "config.json"
_MODEL_TYPE = "model_type"

C = TypeVar("C", bound="Config")


def residual_assignment(num_scales: int, num_convolutions: int) -> tuple[int, ...]:
    """Which shared residual convolution phi serves each scale.

    The nearest of K ticks on the line to s / (S - 1), in float64: at ten scales two are ties that the rounding decides, and float32 decides
    them otherwise.
    """
    margin = 1 / 3 / num_convolutions
    ticks = np.linspace(margin, 1 - margin, num_convolutions)
    return tuple(
        int(np.argmin(np.abs(ticks - scale / max(num_scales - 1, 1)))) for scale in range(num_scales)
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """A frozen dataclass with a JSON form; `model_type` tells the subclasses apart in a file."""

    model_type: ClassVar[str] = ""

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Names of the settings, which tell whether an architecture has one: `"kernel_size" in ...`."""
        return tuple(field.name for field in dataclasses.fields(cls))

    def to_dict(self) -> dict[str, Any]:
        return {_MODEL_TYPE: self.model_type, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls: type[C], values: dict[str, Any], source: str = "config") -> C:
        """Raises ValueError for another model's values and for names this version does not know."""
        found = values.get(_MODEL_TYPE, cls.model_type)
        if found != cls.model_type:
            raise ValueError(f"{source} describes a {found!r} model, expected {cls.model_type!r}")
        known = {field.name for field in dataclasses.fields(cls)}
        given = {name: value for name, value in values.items() if name != _MODEL_TYPE}
        unknown = sorted(set(given) - known)
        if unknown:
            raise ValueError(f"{source} has entries this version does not know: {', '.join(unknown)}")
        try:
            return cls(**given)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source}: {error}") from None

    @classmethod
    def from_file(cls: type[C], path: Path) -> C:
        return cls.from_dict(read_config(path), str(path))

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def replace(self: C, **changes: Any) -> C:
        return dataclasses.replace(self, **changes)

    def _freeze(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


def read_config(path: Path) -> dict[str, Any]:
    """The values of a config.json; ValueError in one line when it is not one."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values


@dataclasses.dataclass(frozen=True)
class VQVAEConfig(Config):
    """Multi-scale residual VQVAE (VAR, arXiv 2404.02905).

    vocab_size: codes. z_channels: length of a code. channels: width of the finest level. channel_multipliers: width of each level over
    `channels`, finest first; every level but the last halves the picture. blocks_per_level: residual blocks a level in the encoder (the
    decoder has one more). sides: grid side of each scale, coarse to fine. residual_convolution_of_scale: index of phi per scale.
    """

    model_type: ClassVar[str] = "vqvae"

    vocab_size: int = 4096
    z_channels: int = 32
    channels: int = 160
    channel_multipliers: Sequence[int] = (1, 1, 2, 2, 4)
    blocks_per_level: int = 2
    sides: Sequence[int] = SIDES_256
    num_residual_convolutions: int = 4
    residual_ratio: float = 0.5
    residual_convolution_of_scale: Sequence[int] | None = None

    def __post_init__(self) -> None:
        self._freeze("channel_multipliers", tuple(self.channel_multipliers))
        self._freeze("sides", tuple(self.sides))
        assignment = self.residual_convolution_of_scale
        if assignment is None:
            assignment = residual_assignment(len(self.sides), self.num_residual_convolutions)
        self._freeze("residual_convolution_of_scale", tuple(assignment))
        if len(self.residual_convolution_of_scale) != len(self.sides):
            raise ValueError(
                f"residual_convolution_of_scale needs one entry per scale ({len(self.sides)}), got {len(assignment)}"
            )

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def resolution(self) -> int:
        """Side of a picture in pixels."""
        return self.sides[-1] * self.downsampling

    def pictures_within(self, pixels: int, most: int) -> int:
        """Pictures that have so many pixels together, from 1 to `most`: the networks' memory goes with pixels."""
        return max(1, min(most, pixels // self.resolution**2))

    @property
    def length(self) -> int:
        """Tokens of a picture, all scales."""
        return sum(side * side for side in self.sides)


@dataclasses.dataclass(frozen=True)
class TransformerConfig(Config):
    """What VAR and MVAR share. width defaults to 64 x depth and num_heads to depth, as in every released model.

    shared_adaln: one AdaLN linear for all blocks (VAR-d36). cosine_attention: L2-normalised q and k with a learned factor per head (all
    released models). guidance_scale, top_k, top_p: this checkpoint's sampling preset. class_names: one name per label, or None.
    vqvae: zoo name, or folder relative to the checkpoint, of the VQVAE whose codes the model predicts.
    """

    # Whether a scale can be computed from its own input, without the tokens of the coarser scales.
    scales_alone: ClassVar[bool] = False

    depth: int = 16
    width: int | None = None
    num_heads: int | None = None
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    vocab_size: int = 4096
    z_channels: int = 32
    sides: Sequence[int] = SIDES_256
    shared_adaln: bool = False
    cosine_attention: bool = True
    guidance_scale: float = 1.5
    top_k: int = 900
    top_p: float = 0.96
    class_names: Sequence[str] | None = None
    vqvae: str | None = None

    def __post_init__(self) -> None:
        self._freeze("sides", tuple(self.sides))
        self._freeze("width", 64 * self.depth if self.width is None else self.width)
        self._freeze("num_heads", self.depth if self.num_heads is None else self.num_heads)
        if self.width % self.num_heads:
            raise ValueError(f"width ({self.width}) must be a multiple of num_heads ({self.num_heads})")
        if self.class_names is not None:
            self._freeze("class_names", tuple(self.class_names))
            if len(self.class_names) != self.num_classes:
                raise ValueError(
                    f"class_names needs one name per class ({self.num_classes}), got {len(self.class_names)}"
                )

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def attention_scale(self) -> float:
        """Factor of the logits; 1 with cosine attention, whose factor is learned."""
        return 1.0 if self.cosine_attention else 0.25 / math.sqrt(self.head_dim)

    @property
    def length(self) -> int:
        return sum(side * side for side in self.sides)

    def scale_of_token(self) -> torch.Tensor:
        """(L,) int64: the scale that each packed token belongs to."""
        return torch.cat([torch.full((side * side,), scale) for scale, side in enumerate(self.sides)])

    def pyramid(self) -> Pyramid:
        return Pyramid(self.sides, kernel_size=max(self.sides))


@dataclasses.dataclass(frozen=True)
class VARConfig(TransformerConfig):
    """VAR: every token attends to its own and all earlier scales."""

    model_type: ClassVar[str] = "var"


@dataclasses.dataclass(frozen=True)
class MVARConfig(TransformerConfig):
    """MVAR: every token attends inside its own scale; the first `dense_scales` scales whole, later ones to kernel_size x kernel_size."""

    model_type: ClassVar[str] = "mvar"
    scales_alone: ClassVar[bool] = True

    kernel_size: int = 7
    dense_scales: int = 8
    guidance_scale: float = 2.7
    top_k: int = 1200
    top_p: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel_size < 1:
            raise ValueError(f"kernel_size must be at least 1, got {self.kernel_size}")
        self.pyramid()  # wrong windows are an error here, not at the first forward

    def pyramid(self) -> Pyramid:
        return Pyramid(self.sides, self.kernel_size, self.dense_scales)
