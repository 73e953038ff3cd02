"""What every transformer over a scale pyramid shares, whatever its blocks.

Shapes: B images, L tokens of all scales packed coarse to fine, C width, V codes, z channels of a code.
"""

from __future__ import annotations

import abc
import math
import os
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mvar_kernels.pyramid import Neighborhood
from mvar_models.checkpoints.checkpoint import Checkpoint, open_checkpoint
from mvar_models.checkpoints.pretrained import PretrainedModel
from mvar_models.config import TransformerConfig
from mvar_models.devices import without_values
from mvar_models.networks.layers import input_dtype, multiply_add, recomputed
from mvar_models.networks.state import BlockContext, Constants, ScaleState
from mvar_models.registry import architecture

T = TypeVar("T", bound="ScaleTransformer")

# Tokens whose float32 logits exist at a time while the loss is computed.
_LOSS_CHUNK_TOKENS = 4096


class ScaleTransformer(PretrainedModel, abc.ABC):
    """Predicts the codes of every scale from the class and `MultiScaleQuantizer.scale_inputs`.

    A subclass has the body between embeddings and head (`add_body`, `init_weights`) and computes all scales
    at once (`hidden_states`) and one at a time (`step`). It may say otherwise who attends to whom
    (`neighborhood`), and what sampling carries from scale to scale (`new_state`).

    Attributes:
        attention_backend: Backend of the attention, see `mvar_kernels`.
        gradient_checkpointing: Whether backward recomputes whole blocks.
        skips_guidance_at: Guidance scale at which sampling needs no unconditional pass, in addition to 0; the
            released programs of VAR and MVAR differ here.
        free_settings: Settings that a trained network may change, as any weights can be trained on with them.
    """

    config_class: ClassVar[type[TransformerConfig]]
    blocks: nn.ModuleList
    shared_modulation: nn.Module | None
    skips_guidance_at: ClassVar[float]
    free_settings: ClassVar[frozenset[str]] = frozenset()

    @torch.inference_mode(False)  # or its parameters could never be trained
    def __init__(self, config: TransformerConfig | None = None) -> None:
        super().__init__()
        self.config = config or self.config_class()
        config, width = self.config, self.config.width
        self.attention_backend = "auto"
        self.gradient_checkpointing = False
        self.token_embedding = nn.Linear(config.z_channels, width)
        self.class_embedding = nn.Embedding(config.num_classes + 1, width)
        self.add_body(config)
        self.head_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, config.vocab_size)
        self.reset_buffers()
        self.init_weights()

    @abc.abstractmethod
    def add_body(self, config: Any) -> None:
        """Create what lies between the embeddings of codes and classes and the head, `blocks` among it."""

    @abc.abstractmethod
    def init_weights(self) -> None:
        """Initialise all parameters as the released recipe does."""

    def _init_linears(self) -> float:
        """Initialise linear layers and embeddings; return the deviation that the recipe uses everywhere."""
        std = math.sqrt(1 / self.config.width / 3)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(module.weight, std=std)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.head.weight *= 0.02
        self.head_modulation.weight *= 0.5
        return std

    @classmethod
    def from_pretrained(
        cls: type[T],
        name: str | os.PathLike[str] | Checkpoint,
        *,
        num_classes: int | None = None,
        **options: Any,
    ) -> T:
        """Load a checkpoint as `PretrainedModel.from_pretrained` does, with its arguments.

        If `num_classes` differs from the checkpoint's, `replace_classes` initialises new class embeddings.
        """
        model = super().from_pretrained(name, **options)
        if num_classes is not None and num_classes != model.config.num_classes:
            model.replace_classes(num_classes)
        return model

    @classmethod
    def from_checkpoint(cls: type[T], name: str | os.PathLike[str] | Checkpoint, **changes: Any) -> T:
        """Load a checkpoint to train it further; one of an architecture to start from is converted.

        Args:
            name: As for `PretrainedModel.from_pretrained`. A file of a released program that does not name
                its architecture is read as the one to start from, if there is one.
            changes: Settings of the configuration. None stands for the checkpoint's value or, where that has
                none, for the released one.

        Raises:
            ValueError: the checkpoint is of another architecture, a setting does not exist, or its value
                differs from the checkpoint's and is none of `free_settings`.
        """
        checkpoint = name if isinstance(name, Checkpoint) else open_checkpoint(name)
        row = architecture(cls.config_class.model_type)
        kind = checkpoint.architecture((row.starts_from or (row.name,))[0]).name
        if kind in row.starts_from:
            parent = architecture(kind).network_class().from_pretrained(checkpoint)
            return cls.from_network(parent, **cls.config_class.settings_for(parent.config.sides, **changes))
        model, asked = cls.from_pretrained(checkpoint), {}
        for setting, value in changes.items():
            actual = getattr(model.config, setting, None)
            if value is None or value == actual:
                continue
            if setting not in cls.free_settings:
                raise ValueError(
                    f"{checkpoint} ({row.title}) has {setting} {actual}, not {value}; "
                    f"leave {setting} out to train it further"
                )
            asked[setting] = value
        return cls.from_network(model, **asked) if asked else model

    @classmethod
    @torch.inference_mode(False)
    def from_network(cls: type[T], other: ScaleTransformer, **changes: Any) -> T:
        """Return a network with a copy of another's parameters, in the same mode, type and place.

        Args:
            other: A network with the same parameters, which is left as it is.
            changes: Settings that differ from its configuration.
        """
        settings = {name: getattr(other.config, name) for name in other.config.field_names()}
        with without_values():
            model = cls(cls.config_class(**{**settings, **changes}))
        copies = {name: tensor.clone() for name, tensor in other.state_dict().items()}
        model.load_state_dict(copies, strict=True, assign=True)
        model.reset_buffers()
        return model.train(other.training)

    @torch.inference_mode(False)
    @torch.no_grad()
    def replace_classes(self, num_classes: int, class_names: Sequence[str] | None = None) -> None:
        """Draw new class embeddings from torch's generator, and keep the unconditional one.

        Args:
            num_classes: Number of classes.
            class_names: One name per class, or None.

        Raises:
            ValueError: fewer than one class, or another number of names.
        """
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.config = self.config.replace(num_classes=num_classes, class_names=class_names)
        old = self.class_embedding.weight
        new = torch.empty(num_classes + 1, old.shape[1], dtype=torch.float32, device="cpu")
        nn.init.trunc_normal_(new, std=math.sqrt(1 / self.config.width / 3))
        new = new.to(device=old.device, dtype=old.dtype)
        new[-1] = old[-1]
        self.class_embedding = nn.Embedding(num_classes + 1, old.shape[1], _weight=new)

    @property  # type: ignore[override]  # narrower, and settable
    def config(self) -> TransformerConfig:
        """The configuration; setting another one changes the pyramid too."""
        return self._config

    @config.setter
    def config(self, config: TransformerConfig) -> None:
        self._config, self.pyramid = config, config.pyramid()

    def neighborhood(self, scales: range) -> Neighborhood:
        """Return who attends to whom among the packed tokens of `scales`."""
        return self.pyramid.select(scales).neighborhood()

    def tokens_of(self, scales: range) -> slice:
        """Return where the tokens of consecutive scales lie among all."""
        return slice(self.pyramid.offsets[scales.start], self.pyramid.scale_slice(scales.stop - 1).stop)

    def new_state(self, labels: Tensor) -> ScaleState:
        """Return what sampling carries from scale to scale, as it is before the coarsest; labels are (B,)."""
        return ScaleState(self.class_embedding(labels))

    def new_guided_state(self, labels: Tensor) -> ScaleState:
        """Return the state of 2 B rows for guidance: those of the (B,) labels, then as many unconditional."""
        return self.new_state(torch.cat([labels, torch.full_like(labels, self.config.num_classes)]))

    @abc.abstractmethod
    def step(self, state: ScaleState, inputs: Tensor, scale: int) -> Tensor:
        """Compute one scale of a batch and advance its state; scales come in order, coarse to fine.

        Args:
            state: From `new_state`; changed in place.
            inputs: (B, n, z) for the n tokens of the scale (`MultiScaleQuantizer.next_input`); (B, 0, z) for
                the coarsest scale, whose input is the class.
            scale: Index of the scale.

        Returns:
            (B, n, C) states before the head, for `logits`.
        """

    def run_blocks(
        self,
        hidden: Tensor,
        class_embedding: Tensor,
        neighborhood: Neighborhood,
        path_keep: Tensor | None = None,
        state: ScaleState | None = None,
        angles: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Run all blocks on (B, n, C); see `forward` for `path_keep`, `BlockContext` for the others."""
        context = BlockContext(neighborhood, self.attention_backend, state, angles)
        whole = class_embedding if state is None else state.constants.class_embedding
        made_from = whole, self.shared_modulation
        condition = context.once("condition", made_from, lambda: self._condition(whole))
        for index, block in enumerate(self.blocks):
            keep = None if path_keep is None else path_keep[index]
            run = block if state is not None else recomputed(block, everything=self.gradient_checkpointing)
            hidden = run(hidden, condition, keep, context)
        return hidden

    def _condition(self, class_embedding: Tensor) -> Tensor:
        """Return what the blocks are conditioned on: (B, 6 C) with shared AdaLN, else (B, C)."""
        condition = F.silu(class_embedding)
        return condition if self.shared_modulation is None else self.shared_modulation(condition)

    def check_scales(self, scales: range | None) -> range:
        """Return the range to compute; None stands for all scales.

        Raises:
            ValueError: the model cannot compute these scales by themselves.
        """
        count = len(self.config.sides)
        if scales is None:
            return range(count)
        if not isinstance(scales, range) or scales.step != 1 or not 0 <= scales.start < scales.stop <= count:
            raise ValueError(f"scales must be a range inside 0 .. {count} with step 1, got {scales!r}")
        return scales

    def forward(
        self,
        labels: Tensor,
        scale_inputs: Tensor,
        scales: range | None = None,
        path_keep: Tensor | None = None,
    ) -> Tensor:
        """Compute logits under teacher forcing.

        Args:
            labels: (B,) int64, 0 .. num_classes - 1, or num_classes for the unconditional class. Labels are
                dropped by the caller, not here.
            scale_inputs: (B, L - 1, z), of all scales even if only some are computed.
            scales: Scales to compute; default: all. VAR's must start at 0.
            path_keep: (depth, 2, B) factors of the residual branches for stochastic depth, drawn by the
                caller.

        Returns:
            (B, n, V) float32 for the n tokens of `scales`.
        """
        scales = self.check_scales(scales)
        hidden, class_embedding = self.hidden_states(labels, scale_inputs, scales, path_keep)
        return self.logits(hidden, class_embedding)

    @abc.abstractmethod
    def hidden_states(
        self, labels: Tensor, scale_inputs: Tensor, scales: range, path_keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the states before the head (B, n, C) and the class embeddings (B, C); see `forward`."""

    def logits(
        self,
        hidden: Tensor,
        class_embedding: Tensor,
        rows: slice = slice(None),
        constants: Constants | None = None,
    ) -> Tensor:
        """Apply the head to some rows of (B, n, C), or all: (b, n, V) float32.

        The norm runs in float32, the product in autocast's type.

        Args:
            hidden: (B, n, C).
            class_embedding: (B, C).
            rows: Which of the B rows.
            constants: The state's, while sampling: the modulation of these rows is computed once.
        """
        constants = constants or Constants(class_embedding)

        def modulation() -> tuple[Tensor, Tensor]:
            both = self.head_modulation(F.silu(class_embedding[rows]))
            scale, shift = both.unflatten(-1, (2, -1)).unsqueeze(1).unbind(2)
            return 1 + scale, shift

        made_from = class_embedding, self.head_modulation
        factor, shift = constants.once(("head", rows.start, rows.stop), made_from, modulation)
        precise = hidden[rows].to(torch.promote_types(hidden.dtype, torch.float32))
        normed = multiply_add(self.normed_for_head(precise), factor, shift)
        return self.head(normed.to(input_dtype(self.head))).float()

    @abc.abstractmethod
    def normed_for_head(self, hidden: Tensor) -> Tensor:
        """Normalise (B, n, C) before the head."""

    def loss(
        self,
        labels: Tensor,
        scale_inputs: Tensor,
        indices: Tensor,
        scales: range | None = None,
        label_smoothing: float = 0.0,
        path_keep: Tensor | None = None,
        token_weights: Tensor | None = None,
    ) -> Tensor:
        """Sum the cross-entropy over tokens of `scales`, divide by L (all tokens), average over the batch.

        Float32 logits exist for a few thousand tokens at a time; backward recomputes them.

        Args:
            labels: As for `forward`.
            scale_inputs: As for `forward`.
            indices: (B, L) int64, of all scales.
            scales: As for `forward`.
            label_smoothing: Weight of the uniform distribution in the targets.
            path_keep: As for `forward`.
            token_weights: (L,) factor of each token, which replaces 1 / L.
        """
        losses = self.token_losses(labels, scale_inputs, indices, scales, label_smoothing, path_keep)
        if token_weights is None:
            return losses.sum(1).mean() / self.config.length
        start = self.tokens_of(self.check_scales(scales)).start
        return (losses @ token_weights[start : start + losses.shape[1]]).mean()

    def token_losses(
        self,
        labels: Tensor,
        scale_inputs: Tensor,
        indices: Tensor,
        scales: range | None = None,
        label_smoothing: float = 0.0,
        path_keep: Tensor | None = None,
    ) -> Tensor:
        """Return the cross-entropy of each token of `scales` in nats, (B, n) float32; see `loss`."""
        scales = self.check_scales(scales)
        if tuple(indices.shape) != (labels.shape[0], self.config.length):
            raise ValueError(
                f"indices must be ({labels.shape[0]}, {self.config.length}), got {tuple(indices.shape)}"
            )
        hidden, class_embedding = self.hidden_states(labels, scale_inputs, scales, path_keep)
        targets = indices[:, self.tokens_of(scales)]

        def chunk_losses(hidden: Tensor, class_embedding: Tensor, targets: Tensor) -> Tensor:
            logits = self.logits(hidden, class_embedding).flatten(0, 1)
            losses = F.cross_entropy(
                logits, targets.flatten(), reduction="none", label_smoothing=label_smoothing
            )
            return losses.view(targets.shape)

        step = max(1, _LOSS_CHUNK_TOKENS // hidden.shape[1])
        chunks = zip(hidden.split(step), class_embedding.split(step), targets.split(step))
        if not torch.is_grad_enabled():
            return torch.cat([chunk_losses(*chunk) for chunk in chunks])
        return torch.cat([checkpoint(chunk_losses, *chunk, use_reentrant=False) for chunk in chunks])

    def gradient_checkpointing_enable(self) -> None:
        """Keep only the input of each block for backward, which then recomputes the block."""
        self.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep what each block's own backward needs."""
        self.gradient_checkpointing = False

    def _check_inputs(self, labels: Tensor, scale_inputs: Tensor) -> None:
        if labels.dim() != 1:
            raise ValueError(f"labels must be (B,), got {tuple(labels.shape)}")
        expected = (labels.shape[0], self.config.length - 1, self.config.z_channels)
        if tuple(scale_inputs.shape) != expected:
            raise ValueError(
                f"scale_inputs must be (B, L - 1, z) = {expected}, got {tuple(scale_inputs.shape)}"
            )
        # Values are checked on a CPU alone: a GPU would be waited for; traced and fake labels have none.
        visible = labels.device.type == "cpu" and type(labels) is Tensor and not torch.compiler.is_compiling()
        most = self.config.num_classes
        if visible and labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= most:
            raise ValueError(f"labels must be between 0 and {most} (unconditional), got {labels.tolist()}")
