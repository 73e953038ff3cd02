"""Training VAR and MVAR on cached codes (recipe: arXiv 2404.02905; alternating schedule: 2505.12742).

The progressive schedule is an option of VAR's released program, off by default there.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mvar_models.config import VQVAE_FOLDER
from mvar_models.data.open import DIGITS
from mvar_models.data.source import ImageSource
from mvar_models.devices import fit_batch
from mvar_models.distributed import Processes
from mvar_models.evaluation.image_sets import ImageSet, SourceImages, evenly_spaced
from mvar_models.evaluation.likelihood import held_out_losses, per_scale
from mvar_models.evaluation.reconstruction import decoded_images, sampled_images
from mvar_models.files import SettingsMismatch
from mvar_models.images import grid
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.networks.vqvae import VQVAE
from mvar_models.pipeline import Pipeline
from mvar_models.pipeline.identity import network_identity
from mvar_models.randomness import Purpose, batch_members, generator
from mvar_models.registry import architecture
from mvar_models.sampling.progress import SAMPLING, counting
from mvar_models.tokens.encode import tokenize_split
from mvar_models.tokens.folder import INDEX, TokenFolder
from mvar_models.tokens.token_set import TokenSet
from mvar_models.tokens.writer import TokenWriter
from mvar_models.training.run_folder import RunFolder
from mvar_models.training.settings import PRECISIONS, ScorerSettings, TransformerSettings
from mvar_models.training.task import Task

# The released alternating schedule trains the dense scales this many times for each pass over the local ones.
_DENSE_STEPS = 8
# The progressive schedule trains all scales after this share of the steps.
_GROWN_AFTER = 0.6
# A validation batch has at most this many images, and at most the tokens times width of 128 images of 256 px
# at depth 16.
_VALIDATION_BATCH, _VALIDATION_FEATURES = 128, 128 * 680 * 1024
_SAMPLE_ROWS, _SAMPLE_COLUMNS = 10, 6


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
        """Return the mean loss of the batch, or (n, L) losses with `per_token`.

        Args:
            labels: (n,) int64.
            scale_inputs: (n, L - 1, z).
            indices: (n, L) int64.
            per_token: Return the loss of each token.
            **options: Passed on to the model.
        """
        compute = self.model.token_losses if per_token else self.model.loss
        return compute(labels, scale_inputs, indices, **options)


class TransformerTask(Task):
    """Teacher-forced cross-entropy on codes; the model's inputs are rebuilt from the codes on the device.

    Args:
        model, vqvae: The transformer to train, and the VQVAE whose codes it predicts.
        train, val: Codes of the training and of the held-out images.
        settings: The run's settings.
        source: The images of the codes, for `compared`. Without them it takes the held-out codes decoded.
    """

    model: ScaleTransformer

    def __init__(
        self,
        model: ScaleTransformer,
        vqvae: VQVAE,
        train: TokenSet,
        val: TokenSet,
        settings: TransformerSettings,
        source: ImageSource | None = None,
    ) -> None:
        self.model = model
        self.compute = LossModule(model)
        self.vqvae = vqvae.to(settings.device)
        self.train = train
        self.val = val
        self.settings = settings
        self.source = source
        depth = model.config.depth
        largest = 0.1 * depth / 24 if settings.drop_path is None else settings.drop_path
        self.drop_rates = np.linspace(0, largest, depth)
        weights = token_weights(settings.scale_weights, model.config.sides)
        self.token_weights = None if weights is None else weights.to(settings.device)

    @property
    def fingerprint(self) -> str:
        return f"{self.train.fingerprint} {self.val.fingerprint}"

    @property
    def num_examples(self) -> int:
        return len(self.train)

    def sharded_modules(self) -> Sequence[nn.Module]:
        return list(self.model.blocks)

    def unused_parameters(self) -> bool:
        """Whether some steps train local scales alone, which do not use the first scale's embedding."""
        return self.settings.schedule == "alternating"

    def loss(self, step: int, rows: slice | None = None) -> tuple[Tensor, dict[str, float]]:
        settings, size, rows = self.settings, self.settings.batch_size, rows or slice(None)

        def rng(purpose: Purpose) -> np.random.Generator:
            return generator(settings.seed, purpose, step)

        # Random numbers are for the whole batch, so that the rows do not depend on who computes which.
        members = batch_members(settings.seed, step, size, len(self.train))[rows]
        copies = rng(Purpose.VARIANT).integers(0, self.train.num_variants, size)[rows]
        dropped = torch.from_numpy(rng(Purpose.LABEL_DROP).random(size) < settings.label_drop)[rows]
        labels, indices = (tensor.to(settings.device) for tensor in self.train.batch(members, copies))
        labels = labels.masked_fill(dropped.to(labels.device), self.model.config.num_classes)
        scales = self.scales_of_step(step)
        loss = self.compute(
            labels,
            self.scale_inputs(indices),
            indices,
            scales=scales,
            label_smoothing=settings.label_smoothing,
            path_keep=self.path_keep(step, rows),
            token_weights=self.token_weights,
        )
        return loss, {} if scales is None else {"first_scale": scales.start, "last_scale": scales.stop - 1}

    def scales_of_step(self, step: int) -> range | None:
        """Return the scales to train at `step`, None for all."""
        if self.settings.schedule == "packed":
            return None
        if self.settings.schedule == "progressive":
            return self._leading_scales(step)
        config: Any = self.model.config  # the settings see to it that there are scales of both kinds
        dense, count = config.dense_scales, len(config.sides)
        phase = step % (_DENSE_STEPS + count - dense)
        if phase < _DENSE_STEPS:
            return range(dense)
        local = dense + phase - _DENSE_STEPS
        return range(local, local + 1)

    def _leading_scales(self, step: int) -> range | None:
        """Return what the progressive schedule trains at `step`: the coarser half at first."""
        count = len(self.model.config.sides)
        first = (count + 1) // 2
        grown = step / (_GROWN_AFTER * self.settings.steps)
        trained = first + math.floor(grown * (count - first))
        return None if trained >= count else range(trained)

    @torch.no_grad()
    def scale_inputs(self, indices: Tensor) -> Tensor:
        """Return (n, L - 1, z) inputs of the transformer for codes (n, L)."""
        with torch.autocast(indices.device.type, enabled=False):
            return self.vqvae.quantizer.scale_inputs(indices)

    def path_keep(self, step: int, rows: slice = slice(None)) -> Tensor | None:
        """Return (depth, 2, n) factors of stochastic depth, each 0 or 1 / (1 - rate); None without it."""
        if not self.drop_rates.any():
            return None
        rates = self.drop_rates[:, None, None]
        shape = (len(self.drop_rates), 2, self.settings.batch_size)
        kept = generator(self.settings.seed, Purpose.DROP_PATH, step).random(shape) >= rates
        return torch.from_numpy(kept[:, :, rows] / (1 - rates)).float().to(self.settings.device)

    def validate(self) -> dict[str, Any]:
        """Return the cross-entropy per token on the held-out images: over all tokens, and per scale."""
        per_token = self.validation_losses()
        return {
            "val_loss": per_token.mean().item(),
            "val_loss_per_scale": per_scale(per_token, self.model.pyramid),
        }

    def validation_losses(self) -> Tensor:
        """Return (L,) the cross-entropy of each token, averaged over the held-out images."""
        config = self.model.config

        def losses(labels: Tensor, scale_inputs: Tensor, indices: Tensor) -> Tensor:
            # Through `compute`, so that FSDP gathers the weights.
            per_token: Tensor = self.compute(labels, scale_inputs, indices, per_token=True)
            return per_token

        return held_out_losses(
            losses,
            self.vqvae.quantizer,
            self.val,
            batch_size=fit_batch(_VALIDATION_FEATURES, config.length * config.width, most=_VALIDATION_BATCH),
            dtype=PRECISIONS[self.settings.precision],
            processes=self.processes,
        )

    def sample(self, model: nn.Module) -> Image.Image:
        """Return a grid with one row for each of the first classes, from the same seeds every time."""
        assert isinstance(model, ScaleTransformer)
        pipeline = self._pipeline(model)
        labels = np.repeat(np.arange(min(model.config.num_classes, _SAMPLE_ROWS)), _SAMPLE_COLUMNS)
        with counting(SAMPLING, len(labels)):
            samples = pipeline(labels.tolist(), seed=self.settings.seed, batch_size=_SAMPLE_COLUMNS)
        return grid(samples, columns=_SAMPLE_COLUMNS)

    def compared(self, model: nn.Module, count: int) -> tuple[ImageSet, ImageSet]:
        """Return samples of the held-out images' classes, and the held-out images."""
        assert isinstance(model, ScaleTransformer)
        real: ImageSet
        if self.source is None:
            members = evenly_spaced(len(self.val), count)
            real, labels = decoded_images(self.vqvae, self.val, members, "held-out"), self.val.labels[members]
        else:
            members = self.source.held_out[evenly_spaced(len(self.source.held_out), count)]
            side = self.vqvae.config.resolution
            real, labels = SourceImages(self.source, members, "held-out", side), self.source.labels[members]
        return sampled_images(self._pipeline(model), labels, seed=self.settings.seed), real

    def _pipeline(self, model: ScaleTransformer) -> Pipeline:
        return architecture(model.config.model_type).pipeline_class()(model, self.vqvae)

    def save(self, folder: Path, model: nn.Module) -> None:
        """Write the model with its VQVAE, so that a pipeline loads the folder alone."""
        assert isinstance(model, ScaleTransformer)
        self.vqvae.save_pretrained(folder / VQVAE_FOLDER)
        model.save_pretrained(folder)


def scale_densities(sides: Sequence[int]) -> list[float]:
    """Return the weight of each scale, which sum to 1: normal densities of the reversed sides, standardised.

    As in HMAR (arXiv 2506.04421).

    Args:
        sides: Grid side of each scale, coarse to fine.
    """
    spread = statistics.stdev(sides) if len(sides) > 1 else 0.0
    if spread == 0:
        return [1 / len(sides)] * len(sides)
    standard = statistics.NormalDist(statistics.mean(sides), spread)
    densities = [standard.pdf(side) for side in reversed(sides)]
    return [density / sum(densities) for density in densities]


def token_weights(name: str, sides: Sequence[int]) -> Tensor | None:
    """Return the weight of each token (L,) in the loss, which sum to 1; None for the plain mean.

    The mean gives a scale as much weight as it has tokens: at 256 px the last of ten carries 37.6 %.

    Args:
        name: One of `SCALE_WEIGHTS` in `mvar_models.training.settings`.
        sides: Grid side of each scale, coarse to fine.
    """
    if name == "tokens":
        return None
    each = torch.tensor(
        [weight / side**2 for weight, side in zip(scale_densities(sides), sides)],
        dtype=torch.float32,
        device="cpu",
    )
    return each.repeat_interleave(torch.tensor([side**2 for side in sides], device="cpu"))


logger = logging.getLogger(__name__)

# Of the training images and of the held-out ones.
TokenSets = tuple[TokenSet, TokenSet]


def open_tokens(
    settings: TransformerSettings | ScorerSettings,
    run: RunFolder,
    processes: Processes,
    vqvae: VQVAE,
    data: ImageSource | TokenFolder,
) -> TokenSets:
    """Return the codes of the training and of the held-out images, which are encoded if need be.

    Raises:
        ValueError: the codes are another VQVAE's, the data has changed since the run began, or it is not that
            of another process.
    """
    if not processes.alone:
        facts = {"the fingerprint of the data": data.fingerprint, "the VQVAE": network_identity(vqvae)}
        processes.require_same(facts)
    if isinstance(data, TokenFolder):
        return processes.first_then_others(lambda: data.token_sets(vqvae, settings.copies))
    if settings.data == DIGITS:  # their codes take seconds, so they stay in memory
        return processes.first_then_others(
            lambda: tokenize_split(vqvae, data, settings.copies, settings.seed)
        )
    return _encode(settings, run, processes, vqvae, data)


def _encode(
    settings: TransformerSettings | ScorerSettings,
    run: RunFolder,
    processes: Processes,
    vqvae: VQVAE,
    source: ImageSource,
) -> TokenSets:
    """Encode images into the run folder, where a resumed run finds the codes; processes share the work."""
    folder = run.path / "tokens"

    def begin() -> TokenWriter:
        names = settings.data, settings.vqvae
        try:
            return TokenWriter(
                vqvae, source, folder, names=names, num_variants=settings.copies, seed=settings.seed
            )
        except SettingsMismatch as error:
            raise ValueError(
                f"what {run.path} trains on has changed since it began ({', '.join(error.changed)}); "
                f"restore it to continue, or start a new run from {run.best}"
            ) from None

    writer = processes.first_then_others(begin)
    with processes.raising_together():
        writer.write(processes)
    # On a network disk, two processes that finish together may each miss the other's last shard, so that
    # neither writes the index.
    processes.run_on_rank0(writer.write)
    with processes.raising_together():
        made = TokenFolder(folder)
        sets = made.token_sets(vqvae)
    if made.skipped:
        logger.warning(
            "%d skipped, %d images used; all are listed in %s", len(made.skipped), len(made), folder / INDEX
        )
    return sets
