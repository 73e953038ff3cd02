"""Model configurations: dataclasses with a JSON form, which config.json holds.

The defaults are the released 256 px models. The assignment of residual convolutions to scales is stored, not
derived on reading, because float32 and float64 disagree on two of ten scales (see `residual_assignment`).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, TypeVar

import numpy as np
import torch

from mvar_kernels import Pyramid
from mvar_models.records import Must, check_fields, record_of, within

SIDES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SIDES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
SIDES_1024 = (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)
# Side of the image in pixels -> grid side of each scale, as released.
RELEASED_SIDES = {256: SIDES_256, 512: SIDES_512, 1024: SIDES_1024}

# The files of a folder written by `save_pretrained`, and the folder in it that holds a pipeline's VQVAE.
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
VQVAE_FOLDER = "vqvae"
_MODEL_TYPE = "model_type"

_NORM_GROUPS = 32  # of every norm of a VQVAE

C = TypeVar("C", bound="Config")

# Far beyond any model, and small enough that nothing is built from a size that cannot be.
_Depth = Annotated[int, within(1, 1024)]
Width = Annotated[int, within(1, 1 << 16)]
Count = Annotated[int, within(1, 1 << 22)]
_Ratio = Annotated[float, within(2**-16, 64)]
TopK = Annotated[int, within(0, 1 << 22)]
Share = Annotated[float, within(0, 1)]
_Index = Annotated[int, within(0, 1024)]
Drafters = Sequence[tuple[_Index, _Index]]
_Side = Annotated[int, within(1, 4096)]
Sides = Annotated[
    Sequence[_Side],
    Must("of 1 to 64 sides", lambda sides: 1 <= len(sides) <= 64),
    Must("with at most 4,194,304 tokens", lambda sides: sum(side * side for side in sides) <= 1 << 22),
]
_Sequence = Must("of 1 to 16", lambda values: 1 <= len(values) <= 16)


def residual_assignment(num_scales: int, num_convolutions: int) -> tuple[int, ...]:
    """Return the index of the shared residual convolution phi for each scale.

    It is the nearest of K ticks on the line to s / (S - 1), computed in float64: with ten scales two of them
    are ties that rounding decides, and float32 decides them the other way.
    """
    margin = 1 / 3 / num_convolutions
    ticks = np.linspace(margin, 1 - margin, num_convolutions)
    last = max(num_scales - 1, 1)
    return tuple(int(np.argmin(np.abs(ticks - scale / last))) for scale in range(num_scales))


def released_dense_scales(sides: Sequence[int]) -> int:
    """Return how many scales attend to the whole grid in released MVARs: those of side 10 and below.

    That is 8 at 256 px, as in the released weights, and 6 at 512 px, as the paper reports.
    """
    return sum(side <= 10 for side in sides)


@dataclasses.dataclass(frozen=True)
class Config:
    """A frozen dataclass with a JSON form; `model_type` tells the subclasses apart in a file."""

    model_type: ClassVar[str] = ""

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Return the names of the settings: `"kernel_size" in config_class.field_names()`."""
        return tuple(field.name for field in dataclasses.fields(cls))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings and the model type, as config.json holds them."""
        return {_MODEL_TYPE: self.model_type, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls: type[C], values: dict[str, Any], source: str = "config") -> C:
        """Build a configuration from the values of a config.json; `source` names it in errors.

        Raises:
            ValueError: the values belong to another kind of model, are unknown or contradict each other.
        """
        actual = model_type_of(values) or cls.model_type
        if actual != cls.model_type:
            raise ValueError(f"{source} describes a {actual!r} model, expected {cls.model_type!r}")
        given = {name: value for name, value in values.items() if name != _MODEL_TYPE}
        return record_of(given, cls, source)

    def to_json(self) -> str:
        """Return the text of config.json."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def replace(self: C, **changes: Any) -> C:
        """Return a copy with some settings changed."""
        return dataclasses.replace(self, **changes)

    def __post_init__(self) -> None:
        check_fields(self)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # frozen; __post_init__ fills in what the caller left open


def model_type_of(values: dict[str, Any]) -> str | None:
    """Return the kind of model that the values of a config.json name, or None."""
    kind = values.get(_MODEL_TYPE)
    return None if kind is None else str(kind)


@dataclasses.dataclass(frozen=True)
class VQVAEConfig(Config):
    """Multi-scale residual VQVAE (VAR, arXiv 2404.02905).

    Attributes:
        vocab_size: Number of codes.
        z_channels: Length of a code vector.
        channels: Width of the finest level.
        channel_multipliers: Width of each level over `channels`, finest first; every level but the last
            halves the image.
        blocks_per_level: Residual blocks per level of the encoder; the decoder has one more.
        sides: Grid side of each scale, coarse to fine.
        num_residual_convolutions: Number of shared convolutions phi.
        residual_ratio: Share r of the convolution in phi(x) = (1 - r) x + r conv(x).
        residual_convolution_of_scale: Index of phi per scale; None becomes `residual_assignment`.
    """

    model_type: ClassVar[str] = "vqvae"

    vocab_size: Count = 4096
    z_channels: Width = 32
    channels: Width = 160
    channel_multipliers: Annotated[Sequence[Annotated[int, within(1, 64)]], _Sequence] = (1, 1, 2, 2, 4)
    blocks_per_level: Annotated[int, within(1, 64)] = 2
    sides: Sides = SIDES_256
    num_residual_convolutions: Annotated[int, within(1, 64)] = 4
    residual_ratio: Annotated[float, within(-1e6, 1e6)] = 0.5
    residual_convolution_of_scale: Sequence[_Index] = None  # type: ignore[assignment]  # never None after __post_init__

    def __post_init__(self) -> None:
        super().__post_init__()
        assignment = self.residual_convolution_of_scale
        if assignment is None:
            assignment = residual_assignment(len(self.sides), self.num_residual_convolutions)
            self._set("residual_convolution_of_scale", assignment)
        if len(assignment) != len(self.sides):
            raise ValueError(
                f"residual_convolution_of_scale needs one entry per scale ({len(self.sides)}), "
                f"got {len(assignment)}"
            )
        if max(assignment) >= self.num_residual_convolutions:
            raise ValueError(
                "residual_convolution_of_scale must be below num_residual_convolutions "
                f"({self.num_residual_convolutions}), got {max(assignment)}"
            )
        for multiplier in {1, *self.channel_multipliers}:
            if self.channels * multiplier % _NORM_GROUPS:
                raise ValueError(
                    f"channels times each of channel_multipliers must be a multiple of {_NORM_GROUPS}, "
                    f"got {self.channels * multiplier}"
                )

    @property
    def downsampling(self) -> int:
        """Pixels per side of a latent position."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def resolution(self) -> int:
        """Side of an image in pixels."""
        return self.sides[-1] * self.downsampling

    @property
    def length(self) -> int:
        """Tokens per image, over all scales."""
        return sum(side * side for side in self.sides)


@dataclasses.dataclass(frozen=True)
class TransformerConfig(Config):
    """Settings of all transformers over a scale pyramid.

    Attributes:
        depth: Number of blocks.
        width: Features per token; None becomes 64 x depth, as in every released model.
        num_heads: Attention heads; None becomes depth, as in every released model.
        mlp_ratio: Width of the feed-forward network over `width`.
        num_classes: Number of classes; the embedding has one more row, for "unconditional".
        vocab_size: Number of codes, as the VQVAE's.
        z_channels: Length of a code vector, as the VQVAE's.
        sides: Grid side of each scale, coarse to fine, as the VQVAE's.
        shared_adaln: One AdaLN linear for all blocks (VAR-d36).
        cosine_attention: L2-normalised q and k with a learned factor per head (all released models).
        class_names: One name per label, or None.
        vqvae: Zoo name, folder or Hub id of the VQVAE whose codes the model predicts; None if it lies in the
            checkpoint's own `vqvae` folder.
        origin: How the weights were computed from others, for people; None for weights as trained.
        all others: The checkpoint's sampling preset, see `mvar_models.sampling.settings.SamplingSettings`.
    """

    # Whether training can take turns between dense and windowed scales.
    alternates: ClassVar[bool] = False

    depth: _Depth = 16
    width: Width = None  # type: ignore[assignment]  # never None after __post_init__
    num_heads: Width = None  # type: ignore[assignment]  # never None after __post_init__
    mlp_ratio: _Ratio = 4.0
    num_classes: Count = 1000
    vocab_size: Count = 4096
    z_channels: Width = 32
    sides: Sides = SIDES_256
    shared_adaln: bool = False
    cosine_attention: bool = True
    guidance_scale: float = 1.5
    top_k: TopK = 900
    top_p: Share = 0.96
    class_names: Sequence[str] | None = None
    vqvae: str | None = None
    guidance_schedule: str = "linear"
    sampler: str = "ancestral"
    scorer: str | None = None
    candidates: Count = 4
    candidate_scales: str = "1:"
    cache_budget: Share = 1.0
    cache_rule: str = "attention"
    cache_drafters: Drafters = ()
    origin: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("width", 64 * self.depth if self.width is None else self.width)
        self._set("num_heads", self.depth if self.num_heads is None else self.num_heads)
        if self.width % self.num_heads:
            raise ValueError(f"width ({self.width}) must be a multiple of num_heads ({self.num_heads})")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise ValueError(
                f"class_names needs one name per class ({self.num_classes}), got {len(self.class_names)}"
            )

    @property
    def head_dim(self) -> int:
        """Features per attention head."""
        return self.width // self.num_heads

    @property
    def attention_scale(self) -> float:
        """Factor of the logits; 1 with cosine attention, whose factor is learned."""
        return 1.0 if self.cosine_attention else 0.25 / math.sqrt(self.head_dim)

    @property
    def length(self) -> int:
        """Tokens per image, over all scales."""
        return sum(side * side for side in self.sides)

    def reason_against_alternating(self) -> str | None:
        """Return why training cannot take turns between dense and windowed scales, or None."""
        return f"this model is a {self.model_type}"

    def scale_of_token(self) -> torch.Tensor:
        """Return the scale that each packed token belongs to: (L,) int64."""
        areas = torch.tensor(self.sides, device="cpu") ** 2
        return torch.arange(len(self.sides), device="cpu").repeat_interleave(areas, output_size=self.length)

    def pyramid(self) -> Pyramid:
        """Return the scales, with the windows of attention inside each."""
        return Pyramid(self.sides, kernel_size=max(self.sides))

    def released_mask(self) -> torch.Tensor:
        """Return the mask that released files store: (L, L) bool, True where attended.

        It says which scales see each other and knows no windows, whatever `pyramid` says.
        """
        return TransformerConfig.pyramid(self).mask()

    @classmethod
    def settings_for(cls, sides: Sequence[int], **asked: Any) -> dict[str, Any]:
        """Return settings that a state dict does not show: those asked for, else those released for `sides`.

        Args:
            sides: Grid side of each scale, coarse to fine.
            asked: Settings by name; None stands for the released value.

        Raises:
            ValueError: there is no such setting.
        """
        asked = {name: value for name, value in asked.items() if value is not None}
        for name in asked.keys() - set(cls.field_names()):
            raise ValueError(f"{name} is no setting of a {cls.model_type} model")
        return asked


@dataclasses.dataclass(frozen=True)
class VARConfig(TransformerConfig):
    """VAR: every token attends to its own and all earlier scales."""

    model_type: ClassVar[str] = "var"

    def released_mask(self) -> torch.Tensor:
        return self.pyramid().causal_mask()


@dataclasses.dataclass(frozen=True)
class MVARConfig(TransformerConfig):
    """MVAR: every token attends inside its own scale, and to `previous_scales` before it if there are any.

    Attributes:
        kernel_size: Side of the window that tokens of the finer scales attend to.
        dense_scales: Number of leading scales that attend to whole scales.
        previous_scales: Scales before its own that a token attends to as well, at the corresponding place; 0,
            as released, for none. With all of them and dense scales the model is a VAR.
    """

    model_type: ClassVar[str] = "mvar"
    alternates: ClassVar[bool] = True

    kernel_size: _Side = 7
    dense_scales: _Index = 8
    previous_scales: _Index = 0
    guidance_scale: float = 2.7
    top_k: TopK = 1200
    top_p: Share = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pyramid()  # wrong windows are an error here, not at the first forward

    def reason_against_alternating(self) -> str | None:
        if self.previous_scales:
            return "with previous_scales no scale can be trained without the coarser ones"
        if not self.dense_scales:
            return "no scale is dense: dense_scales is 0"
        if all(side <= self.kernel_size for side in self.sides[self.dense_scales :]):
            return (
                f"no scale has windows: dense_scales is {self.dense_scales}, kernel_size {self.kernel_size}"
            )
        return None

    def pyramid(self) -> Pyramid:
        return Pyramid(self.sides, self.kernel_size, self.dense_scales, self.previous_scales)

    @classmethod
    def settings_for(cls, sides: Sequence[int], **asked: Any) -> dict[str, Any]:
        return {"dense_scales": released_dense_scales(sides), **super().settings_for(sides, **asked)}


@dataclasses.dataclass(frozen=True)
class MarkovVARConfig(TransformerConfig):
    """Markov-VAR (arXiv 2511.23334): every token attends inside its own scale and knows a history vector.

    Attributes:
        kernel_size: Side of the windows of the finer scales; None, as released, attends to whole scales.
        dense_scales: Number of leading scales that attend to the whole scale whatever `kernel_size` says.
        history_scales: Number of scales whose inputs the history vector pools, the scale's own among them.
    """

    model_type: ClassVar[str] = "markov-var"

    mlp_ratio: _Ratio = 8 / 3
    kernel_size: _Side | None = None
    dense_scales: _Index = 0
    history_scales: Annotated[int, within(1, 1024)] = 3
    guidance_scale: float = 5.0
    top_k: TopK = 900
    top_p: Share = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shared_adaln:
            raise ValueError("shared_adaln must be False: Markov-VAR has an AdaLN linear in every block")
        for name, value, of in (("width", self.width, 128), ("head_dim", self.head_dim, 4)):
            if value % of:
                raise ValueError(f"{name} must be a multiple of {of} for Markov-VAR, got {value}")
        self.pyramid()  # wrong windows are an error here, not at the first forward

    @property
    def hidden_width(self) -> int:
        """Features inside the feed-forward network: `mlp_ratio` times the width, in steps of 256."""
        return int((self.mlp_ratio * self.width + 255) // 256) * 256

    def pyramid(self) -> Pyramid:
        return Pyramid(self.sides, self.kernel_size or max(self.sides), self.dense_scales)

    @classmethod
    def settings_for(cls, sides: Sequence[int], **asked: Any) -> dict[str, Any]:
        settings = super().settings_for(sides, **asked)
        windows = {"dense_scales": released_dense_scales(sides)} if "kernel_size" in settings else {}
        return {**windows, **settings}
