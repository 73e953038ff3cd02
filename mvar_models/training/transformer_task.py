"""Training VAR and MVAR on cached codes (recipe: VAR, arXiv 2404.02905; schedules: MVAR, arXiv 2505.12742)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvar_models.config import MVARConfig, VARConfig
from mvar_models.mvar import MVAR
from mvar_models.pipeline import VQVAE_FOLDER
from mvar_models.training.loop import Task
from mvar_models.training.randomness import Purpose, batch_members, generator
from mvar_models.training.recipe import TransformerRun
from mvar_models.training.run_folder import RunFolder
from mvar_models.training.tokens import TokenSet
from mvar_models.transformer import ScaleTransformer
from mvar_models.var import VAR
from mvar_models.vqvae import VQVAE

_DENSE_STEPS = 8
_VALIDATION_BATCH = 128


def build_model(config: TransformerRun, vqvae: VQVAE, class_names: tuple[str, ...]) -> ScaleTransformer:
    """A new model, a checkpoint of the same architecture, or an MVAR made from a VAR's parameters.

    Raises:
        ValueError: the checkpoint's classes or codes are not those of the data and the VQVAE.
    """
    if config.init is None:
        model = _new_model(config, vqvae, class_names)
    elif config.arch == "var":
        model = VAR.from_pretrained(config.init)
    else:
        model = _mvar_from(config)
    if model.config.num_classes != len(class_names):
        raise ValueError(f"the data has {len(class_names)} classes, {config.init} has {model.config.num_classes}")
    for name in ("sides", "vocab_size", "z_channels"):
        if getattr(model.config, name) != getattr(vqvae.config, name):
            raise ValueError(f"{config.vqvae} does not fit {config.init}: {name} differs")
    model.config = model.config.replace(class_names=class_names)
    return model.to(config.device)


def _new_model(config: TransformerRun, vqvae: VQVAE, class_names: tuple[str, ...]) -> ScaleTransformer:
    torch.manual_seed(config.seed)
    shape: dict[str, Any] = {
        "depth": config.depth,
        "width": config.width,
        "num_heads": config.num_heads,
        "shared_adaln": config.shared_adaln,
        "num_classes": len(class_names),
        "vocab_size": vqvae.config.vocab_size,
        "z_channels": vqvae.config.z_channels,
        "sides": vqvae.config.sides,
        "top_k": 0,
    }
    if config.arch == "var":
        return VAR(VARConfig(**shape))
    return MVAR(MVARConfig(**shape, kernel_size=config.kernel_size, dense_scales=config.dense_scales))


def _mvar_from(config: TransformerRun) -> MVAR:
    """An MVAR checkpoint as it is, a VAR converted; a released file looks alike for both, so it is read as a VAR and windowed as asked."""
    try:
        var = VAR.from_pretrained(config.init)
    except ValueError as not_a_var:
        try:
            return MVAR.from_pretrained(config.init)
        except ValueError:
            raise not_a_var from None
    return MVAR.from_var(var, kernel_size=config.kernel_size, dense_scales=config.dense_scales)


class TransformerTask(Task):
    """Cross-entropy on the codes, teacher-forced; inputs are rebuilt from the codes on the device."""

    def __init__(self, model: ScaleTransformer, vqvae: VQVAE, train: TokenSet, val: TokenSet, config: TransformerRun) -> None:
        self.model = model
        self.vqvae = vqvae.to(config.device)
        self.train = train
        self.val = val
        self.config = config
        depth = model.config.depth
        largest = 0.1 * depth / 24 if config.drop_path is None else config.drop_path
        self.drop_rates = np.linspace(0, largest, depth)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        config, size = self.config, self.config.batch_size
        members = batch_members(config.seed, step, size, len(self.train))
        copies = generator(config.seed, Purpose.COPY, step).integers(0, self.train.copies, size)
        labels, indices = (tensor.to(config.device) for tensor in self.train.batch(members, copies))
        dropped = torch.from_numpy(generator(config.seed, Purpose.LABEL_DROP, step).random(size) < config.label_drop)
        labels = labels.masked_fill(dropped.to(labels.device), self.model.config.num_classes)
        scales = self.scales_of_step(step)
        loss = self.model.loss(
            labels, self.scale_inputs(indices), indices, scales, config.label_smoothing, path_keep=self._path_keep(step)
        )
        return loss, {} if scales is None else {"first_scale": scales.start, "last_scale": scales.stop - 1}

    def scales_of_step(self, step: int) -> range | None:
        """What to train at `step`; None is everything."""
        if self.config.schedule == "packed":
            return None
        dense, count = self.model.config.dense_scales, len(self.model.config.sides)
        phase = step % (_DENSE_STEPS + count - dense)
        return range(dense) if phase < _DENSE_STEPS else range(dense + phase - _DENSE_STEPS, dense + phase - _DENSE_STEPS + 1)

    @torch.no_grad()
    def scale_inputs(self, indices: Tensor) -> Tensor:
        with torch.autocast(indices.device.type, enabled=False):
            return self.vqvae.quantizer.scale_inputs(indices)

    def _path_keep(self, step: int) -> Tensor | None:
        """(depth, 2, B) factors of stochastic depth: 0, or 1 / (1 - rate)."""
        if not self.drop_rates.any():
            return None
        rates = self.drop_rates[:, None, None]
        kept = generator(self.config.seed, Purpose.DROP_PATH, step).random((len(self.drop_rates), 2, self.config.batch_size)) >= rates
        return torch.from_numpy(kept / (1 - rates)).float().to(self.config.device)

    def validate(self) -> dict[str, Any]:
        """Cross-entropy per token on the held-out pictures: over all tokens, and per scale."""
        per_token = self.validation_losses()
        pyramid = self.model.pyramid
        per_scale = [per_token[pyramid.scale_slice(s)].mean().item() for s in range(pyramid.num_scales)]
        return {"val_loss": per_token.mean().item(), "val_loss_per_scale": per_scale}

    @torch.no_grad()
    def validation_losses(self) -> Tensor:
        """(L,) cross-entropy of each token, averaged over the held-out pictures."""
        total = torch.zeros(self.model.config.length, dtype=torch.float64)
        for start in range(0, len(self.val), _VALIDATION_BATCH):
            members = np.arange(start, min(start + _VALIDATION_BATCH, len(self.val)))
            labels, indices = (tensor.to(self.config.device) for tensor in self.val.batch(members))
            total += self.model.token_losses(labels, self.scale_inputs(indices), indices).double().sum(0).cpu()
        return total / len(self.val)

    def save(self, run: RunFolder) -> None:
        """The model with its VQVAE beside it, so that a pipeline loads the folder alone."""
        self.model.config = self.model.config.replace(vqvae=None)
        self.vqvae.save_pretrained(run.model / VQVAE_FOLDER)
        self.model.save_pretrained(run.model)
