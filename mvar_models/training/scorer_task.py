"""Training the scorer of LSRS (arXiv 2512.03796) on pairs of a class: sampled codes, codes of images.

Pairs are drawn at random, not enumerated.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mvar_models.files import replacing
from mvar_models.networks.quantizer import MultiScaleQuantizer
from mvar_models.networks.scorer import Scorer, ranking_loss, score_margins
from mvar_models.pipeline import Pipeline
from mvar_models.randomness import Purpose, batch_members, generator
from mvar_models.sampling.progress import SAMPLING, counting
from mvar_models.tokens.token_set import TokenSet
from mvar_models.training.settings import ScorerSettings
from mvar_models.training.task import Task

# Of the samples of a class, for validation.
_HELD_OUT = 0.1
_AT_A_TIME = 64
# The first of the four epochs of the released program.
_WARM_UP = 0.25


class Ranking(nn.Module):
    """The margins of pairs at every scale, as a forward."""

    def __init__(self, model: Scorer, quantizer: MultiScaleQuantizer) -> None:
        super().__init__()
        self.model = model
        self._quantizer = [quantizer]  # not a part of what is trained

    def forward(self, labels: Tensor, sampled: Tensor, real: Tensor) -> Tensor:
        """Return S(real) - S(sampled) of labels (n,) and codes (n, L) each: (n, S)."""
        with torch.no_grad():
            fakes, trues = (list(self._quantizer[0].accumulate(codes)) for codes in (sampled, real))
        return score_margins(self.model, fakes, trues, labels)


class ScorerTask(Task):
    """A scorer with the codes of images and of a model's samples.

    Args:
        model: The scorer to train.
        quantizer: The quantizer of the VQVAE that made all codes.
        train, val: Codes of the training and of the held-out images.
        sampled: Codes that the model sampled, as many of every class.
        settings: The run's settings.
    """

    model: Scorer

    def __init__(
        self,
        model: Scorer,
        quantizer: MultiScaleQuantizer,
        train: TokenSet,
        val: TokenSet,
        sampled: TokenSet,
        settings: ScorerSettings,
    ) -> None:
        self.model, self.settings = model, settings
        self.compute = Ranking(model, quantizer.to(settings.device))
        self.train, self.val, self.sampled = train, val, sampled
        self._held_out = max(1, round(settings.per_class * _HELD_OUT))

    @property
    def fingerprint(self) -> str:
        return f"{self.train.fingerprint} {self.val.fingerprint} {self.sampled.fingerprint}"

    @property
    def num_examples(self) -> int:
        return len(self.train)

    def learning_rate_factor(self, step: int, steps: int) -> float:
        """Warm up for a quarter of the run, then fall to 0 along a cosine, as released."""
        warm_up = _WARM_UP * steps
        if step < warm_up:
            return (step + 1) / (warm_up + 1)
        return 0.5 + 0.5 * math.cos(math.pi * (step - warm_up) / (steps - warm_up))

    def loss(self, step: int, rows: slice | None = None) -> tuple[Tensor, dict[str, float]]:
        settings, size, rows = self.settings, self.settings.batch_size, rows or slice(None)
        members = batch_members(settings.seed, step, size, len(self.train))[rows]
        rng = generator(settings.seed, Purpose.PARTNER, step)
        copies = rng.integers(0, self.train.num_variants, size)[rows]
        partners = rng.integers(self._held_out, settings.per_class, size)[rows]
        # Dropout reads torch's generator; so a resumed run drops what the uninterrupted one does.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(1 << 62)) + (rows.start or 0))
            margins = self._margins(self.train, members, copies, partners)
        return ranking_loss(margins), {"accuracy": (margins > 0).float().mean().item()}

    def _margins(self, real: TokenSet, members: np.ndarray, copies: Any, partners: np.ndarray) -> Tensor:
        """Return the margins (n, S) of images and the samples of their classes with those numbers."""
        labels, codes = (each.to(self.settings.device) for each in real.batch(members, copies))
        places = real.labels[members] * self.settings.per_class + partners
        sampled = self.sampled.batch(places)[1].to(self.settings.device)
        margins: Tensor = self.compute(labels, sampled, codes)
        return margins

    def validate(self) -> dict[str, Any]:
        """Return the loss on held-out images and samples, and the share of pairs in order, per scale."""
        margins = []
        with counting("validation", len(self.val)) as meter:
            for start in range(0, len(self.val), _AT_A_TIME):
                members = np.arange(start, min(start + _AT_A_TIME, len(self.val)))
                margins.append(self._margins(self.val, members, 0, members % self._held_out))
                meter.advance(len(members))
        every = torch.cat(margins)
        return {
            "val_loss": ranking_loss(every).item(),
            "val_accuracy_per_scale": (every > 0).float().mean(0).tolist(),
        }

    def save(self, folder: Path, model: nn.Module) -> None:
        assert isinstance(model, Scorer)
        model.save_pretrained(folder)


def sampled_codes(pipeline: Pipeline, per_class: int, seed: int, file: Path) -> TokenSet:
    """Sample codes of every class with the model's own preset, or read those that an earlier call wrote.

    Args:
        pipeline: The model that the scorer is for.
        per_class: Samples per class.
        seed: Seed of the first image; those that follow take the next ones.
        file: .npy of (N, L) uint16, written when all are there.
    """
    config = pipeline.model.config
    labels = np.repeat(np.arange(config.num_classes), per_class)
    if not file.is_file():
        with counting(SAMPLING, len(labels)):
            output = pipeline(
                labels.tolist(),
                seed=seed,
                output_type="latent",
                batch_invariant=False,
                batch_size=_AT_A_TIME,
            )
        with replacing(file) as temporary, temporary.open("wb") as opened:
            np.save(opened, output.indices.cpu().numpy().astype(np.uint16))
    codes = np.load(file, allow_pickle=False)
    if codes.shape != (len(labels), config.length) or codes.dtype != np.uint16:
        raise ValueError(f"{file} must hold {(len(labels), config.length)} uint16, got {codes.shape}")
    return TokenSet(codes[None], labels)


def check_scorable(pipeline: Pipeline, class_names: tuple[str, ...]) -> None:
    """Raise ValueError unless the classes of the data are the model's."""
    names = pipeline.model.config.class_names
    if len(class_names) != pipeline.model.config.num_classes or (names and tuple(names) != class_names):
        raise ValueError(
            f"the data has {len(class_names)} classes, the model {pipeline.model.config.num_classes}: "
            "a scorer needs images of the model's own classes"
        )
