"""Training VAR and MVAR on cached codes (recipe: VAR, arXiv 2404.02905; schedules: MVAR, arXiv 2505.12742)."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mvar_models.config import MVARConfig, TransformerConfig, VARConfig
from mvar_models.devices import fit_batch
from mvar_models.images import grid
from mvar_models.networks.mvar import MVAR
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.networks.var import VAR
from mvar_models.networks.vqvae import VQVAE
from mvar_models.pipeline import VQVAE_FOLDER, MVARPipeline, VARPipeline, kind_of
from mvar_models.randomness import Purpose, batch_members, generator
from mvar_models.tokens.encode import TokenSet
from mvar_models.training.settings import PRECISIONS, TransformerSettings
from mvar_models.training.task import SumOverProcesses, Task

logger = logging.getLogger(__name__)

_DENSE_STEPS = 8
# Pictures of a validation pass at most, and their tokens times the width: 128 of 256 px at depth 16.
_VALIDATION_BATCH, _VALIDATION_FEATURES = 128, 128 * 680 * 1024
_KERNEL_SIZE = 7
_LARGEST_DENSE_SIDE = 10
_SAMPLE_ROWS, _SAMPLE_COLUMNS = 10, 6
_WORDNET_ID = re.compile(r"n\d{8}")


def checkpoint_of(settings: TransformerSettings) -> ScaleTransformer | None:
    """What the run starts from, an MVAR made from a VAR's parameters where that is asked for; None for nothing."""
    if settings.init is None:
        return None
    return VAR.from_pretrained(settings.init) if settings.arch == "var" else _mvar_from(settings)


def check_fit(model: ScaleTransformer, vqvae: VQVAE, settings: TransformerSettings) -> None:
    """ValueError unless the checkpoint's codes are those of the VQVAE."""
    for name in ("sides", "vocab_size", "z_channels"):
        if getattr(model.config, name) != getattr(vqvae.config, name):
            raise ValueError(f"{settings.vqvae} does not fit {settings.init}: {name} differs")


def build_model(
    settings: TransformerSettings,
    vqvae: VQVAE,
    class_names: tuple[str, ...],
    resuming: bool = False,
    checkpoint: ScaleTransformer | None = None,
) -> ScaleTransformer:
    """A new model, a checkpoint of the same architecture, or an MVAR made from a VAR's parameters; its classes are those of the data.

    resuming: a run that goes on said at its start what it does to the classes. checkpoint: `checkpoint_of(settings)`, if it is at hand.

    Raises:
        ValueError: the checkpoint's codes are not those of the VQVAE, or it is an MVAR with other windows than asked for.
    """
    model = checkpoint or checkpoint_of(settings) or _new_model(settings, vqvae, class_names)
    check_fit(model, vqvae, settings)
    if not _same_classes(model.config, class_names):
        if not resuming:
            logger.warning(
                "the classes of the data (%d: %s) are not those of %s (%d), so class embeddings start anew (seed %d)",
                len(class_names), _some(class_names), settings.init, model.config.num_classes, settings.seed,
            )  # fmt: skip
        torch.manual_seed(settings.seed)
        model.replace_classes(len(class_names), class_names)
    model.config = model.config.replace(class_names=class_names)
    return model.to(settings.device)


def _same_classes(config: TransformerConfig, names: tuple[str, ...]) -> bool:
    """Whether a checkpoint's class embeddings are for these classes. ImageNet's folders are often named by WordNet id, in its own order."""
    if config.num_classes != len(names):
        return False
    return (
        config.class_names is None
        or config.class_names == names
        or all(_WORDNET_ID.fullmatch(name) for name in names)
    )


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _new_model(settings: TransformerSettings, vqvae: VQVAE, class_names: tuple[str, ...]) -> ScaleTransformer:
    torch.manual_seed(settings.seed)
    shape: dict[str, Any] = {
        "depth": settings.depth,
        "width": settings.width,
        "num_heads": settings.num_heads,
        "shared_adaln": settings.shared_adaln,
        "num_classes": len(class_names),
        "class_names": class_names,
        "vocab_size": vqvae.config.vocab_size,
        "z_channels": vqvae.config.z_channels,
        "sides": vqvae.config.sides,
        "top_k": 0,
    }
    if settings.arch == "var":
        return VAR(VARConfig(**shape))
    return MVAR(MVARConfig(**shape, **_windows(settings, vqvae.config.sides)))


def _windows(settings: TransformerSettings, sides: Sequence[int]) -> dict[str, int]:
    """MVAR's windows as asked for, else as in the released models, whose scales attend to the whole grid up to side 10."""
    dense = (
        sum(side <= _LARGEST_DENSE_SIDE for side in sides)
        if settings.dense_scales is None
        else settings.dense_scales
    )
    kernel_size = _KERNEL_SIZE if settings.kernel_size is None else settings.kernel_size
    if all(side <= kernel_size for side in sides[dense:]):
        logger.warning(
            "no scale has windows: all attend to the whole grid; fewer --dense-scales or a smaller --kernel-size give some"
        )
    return {"kernel_size": kernel_size, "dense_scales": dense}


def _mvar_from(settings: TransformerSettings) -> MVAR:
    """An MVAR checkpoint as it is, a VAR converted; a released file that does not say which is read as a VAR, as their tensors are alike."""
    assert settings.init is not None
    if kind_of(settings.init, arch="var") == "var":
        var = VAR.from_pretrained(settings.init)
        return MVAR.from_var(var, **_windows(settings, var.config.sides))
    model = MVAR.from_pretrained(settings.init)
    for name in ("kernel_size", "dense_scales"):
        asked, has = getattr(settings, name), getattr(model.config, name)
        if asked is not None and asked != has:
            raise ValueError(
                f"{settings.init} is an MVAR with {name} {has}, not {asked}; leave {name} out to go on with it"
            )
    return model


class LossModule(nn.Module):
    """The loss of a transformer as a forward, which DDP and FSDP hook into."""

    def __init__(self, model: ScaleTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        labels: Tensor,
        scale_inputs: Tensor,
        indices: Tensor,
        *,
        per_token: bool = False,
        **options: Any,
    ) -> Tensor:
        """The mean loss of the batch, or with `per_token` (n, L) losses."""
        compute = self.model.token_losses if per_token else self.model.loss
        return compute(labels, scale_inputs, indices, **options)


class TransformerTask(Task):
    """Cross-entropy on the codes, teacher-forced; inputs are rebuilt from the codes on the device."""

    model: ScaleTransformer
    compute: nn.Module

    def __init__(
        self,
        model: ScaleTransformer,
        vqvae: VQVAE,
        train: TokenSet,
        val: TokenSet,
        settings: TransformerSettings,
    ) -> None:
        self.model = model
        self.compute = LossModule(model)
        self.vqvae = vqvae.to(settings.device)
        self.train = train
        self.val = val
        self.settings = settings
        depth = model.config.depth
        largest = 0.1 * depth / 24 if settings.drop_path is None else settings.drop_path
        self.drop_rates = np.linspace(0, largest, depth)
        self.share_validation(0, 1, lambda values: values)

    def loss(self, step: int, rows: slice | None = None) -> tuple[Tensor, dict[str, float]]:
        """Everything random is drawn for the whole batch, of which `rows` are taken."""
        settings, size, rows = self.settings, self.settings.batch_size, rows or slice(None)
        members = batch_members(settings.seed, step, size, len(self.train))[rows]
        copies = generator(settings.seed, Purpose.COPY, step).integers(0, self.train.copies, size)[rows]
        labels, indices = (tensor.to(settings.device) for tensor in self.train.batch(members, copies))
        dropped = torch.from_numpy(
            generator(settings.seed, Purpose.LABEL_DROP, step).random(size) < settings.label_drop
        )[rows]
        labels = labels.masked_fill(dropped.to(labels.device), self.model.config.num_classes)
        scales = self.scales_of_step(step)
        path_keep = self._path_keep(step, rows)
        inputs = self.scale_inputs(indices)
        loss = self.compute(
            labels,
            inputs,
            indices,
            scales=scales,
            label_smoothing=settings.label_smoothing,
            path_keep=path_keep,
        )
        return loss, {} if scales is None else {"first_scale": scales.start, "last_scale": scales.stop - 1}

    @property
    def fingerprint(self) -> str:
        return f"{self.train.fingerprint} {self.val.fingerprint}"

    @property
    def num_examples(self) -> int:
        return len(self.train)

    def sharded_modules(self) -> Sequence[nn.Module]:
        return list(self.model.blocks)

    def unused_parameters(self) -> bool:
        """Steps on one local scale do not use the first scale's embedding."""
        return self.settings.schedule == "alternating"

    def share_validation(self, rank: int, world_size: int, total: SumOverProcesses) -> None:
        self._rank, self._world_size, self._total = rank, world_size, total

    def scales_of_step(self, step: int) -> range | None:
        """What to train at `step`; None is everything."""
        if self.settings.schedule == "packed":
            return None
        dense, count = self.model.config.dense_scales, len(self.model.config.sides)
        phase = step % (_DENSE_STEPS + count - dense)
        return (
            range(dense)
            if phase < _DENSE_STEPS
            else range(dense + phase - _DENSE_STEPS, dense + phase - _DENSE_STEPS + 1)
        )

    @torch.no_grad()
    def scale_inputs(self, indices: Tensor) -> Tensor:
        with torch.autocast(indices.device.type, enabled=False):
            return self.vqvae.quantizer.scale_inputs(indices)

    def _path_keep(self, step: int, rows: slice = slice(None)) -> Tensor | None:
        """(depth, 2, B) factors of stochastic depth: 0, or 1 / (1 - rate)."""
        if not self.drop_rates.any():
            return None
        rates = self.drop_rates[:, None, None]
        kept = (
            generator(self.settings.seed, Purpose.DROP_PATH, step).random(
                (len(self.drop_rates), 2, self.settings.batch_size)
            )
            >= rates
        )
        return torch.from_numpy(kept[:, :, rows] / (1 - rates)).float().to(self.settings.device)

    def validate(self) -> dict[str, Any]:
        """Cross-entropy per token on the held-out pictures: over all tokens, and per scale."""
        per_token = self.validation_losses()
        pyramid = self.model.pyramid
        per_scale = [per_token[pyramid.scale_slice(s)].mean().item() for s in range(pyramid.num_scales)]
        return {"val_loss": per_token.mean().item(), "val_loss_per_scale": per_scale}

    @torch.no_grad()
    def validation_losses(self) -> Tensor:
        """(L,) cross-entropy of each token, averaged over the held-out pictures, of which each process takes its share of every batch."""
        total = torch.zeros(self.model.config.length, dtype=torch.float64)
        features = self.model.config.length * self.model.config.width
        each = fit_batch(_VALIDATION_FEATURES, features, most=_VALIDATION_BATCH)
        stride, dtype = each * self._world_size, PRECISIONS[self.settings.precision]
        for start in range(0, len(self.val), stride):
            rest = np.arange(start, min(start + stride, len(self.val)))
            members = rest[self._rank :: self._world_size]
            # With FSDP all processes must make the same passes; one that has nothing left to add makes it for nothing.
            labels, indices = (
                tensor.to(self.settings.device)
                for tensor in self.val.batch(members if len(members) else rest[:1])
            )
            with torch.autocast(indices.device.type, dtype=dtype, enabled=dtype is not None):
                losses = self.compute(labels, self.scale_inputs(indices), indices, per_token=True)
            total += losses.double().sum(0).cpu() if len(members) else 0
        return self._total(total) / len(self.val)

    def sample(self) -> Image.Image:
        """A grid with a row for each of the first classes; every time from the same seeds."""
        pipeline = (VARPipeline if isinstance(self.model, VAR) else MVARPipeline)(self.model, self.vqvae)
        labels = [
            label
            for label in range(min(self.model.config.num_classes, _SAMPLE_ROWS))
            for _ in range(_SAMPLE_COLUMNS)
        ]
        return grid(
            pipeline(labels, seed=self.settings.seed, batch_size=_SAMPLE_COLUMNS), columns=_SAMPLE_COLUMNS
        )

    def save(self, folder: Path) -> None:
        """The model with its VQVAE beside it, so that a pipeline loads the folder alone."""
        self.model.config = self.model.config.replace(vqvae=None)
        self.vqvae.save_pretrained(folder / VQVAE_FOLDER)
        self.model.save_pretrained(folder)
