"""Neon (arXiv 2510.03597): a model moved away from what training on its own samples makes of it.

theta + w (theta - theta_self), eq. 2 of the paper: theta_self is theta after a short training on samples of
theta. The released program trains on images, which the VQVAE decodes and encodes again, and so on blurred
ones. `codes` are the codes as sampled, and real images through the same transform tell what the blur does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvar_models.data.class_names import same_classes
from mvar_models.data.open import open_images
from mvar_models.data.source import ImageSource
from mvar_models.distributed import Processes
from mvar_models.evaluation.reconstruction import check_reconstruction
from mvar_models.files import digest
from mvar_models.images import to_uint8
from mvar_models.networks.vqvae import VQVAE
from mvar_models.pipeline import Pipeline
from mvar_models.pipeline.identity import determinants, network_identity
from mvar_models.records import converted
from mvar_models.sampling.settings import SamplingSettings
from mvar_models.tokens.writer import TokenWriter
from mvar_models.training.loop import StepReport
from mvar_models.training.run_folder import RunFolder
from mvar_models.training.runs import start_transformer_run, train_transformer
from mvar_models.training.settings import TransformerSettings

SAMPLES = ("images", "codes")
# Numbers of images (n,) to their codes (n, L).
Codes = Callable[[np.ndarray], Tensor]


class CodedImages(ImageSource):
    """Images of 8 bits per channel that a VQVAE decodes from codes.

    Args:
        vqvae, labels: The VQVAE, and (N,) classes.
        class_names: One name per class.
        fingerprint: Hex digits that change with the codes.
        codes: Returns the codes of some of the images.
    """

    fingerprint: str = ""

    def __init__(
        self, vqvae: VQVAE, labels: np.ndarray, class_names: Sequence[str], fingerprint: str, codes: Codes
    ) -> None:
        super().__init__(labels, class_names, mirror_safe=False)
        self.vqvae, self.fingerprint, self.codes = vqvae, fingerprint, codes
        self.resolution = vqvae.config.resolution

    def name(self, index: int) -> str:
        return f"image {index}"

    def read(self, index: int) -> Tensor:
        return self.readable(np.array([index]))[0][0]

    @torch.no_grad()
    def readable(self, indices: np.ndarray) -> tuple[Tensor, np.ndarray]:
        images = torch.from_numpy(to_uint8(self.vqvae.decode(self.codes(indices))))
        return images.permute(0, 3, 1, 2).float() / 127.5 - 1, np.arange(len(indices))


class CodesAsTheyAre(TokenWriter):
    """A folder of the codes of `CodedImages`, which are not decoded and encoded again."""

    def encoded(self, indices: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        assert isinstance(self.source, CodedImages)
        for start in range(0, len(indices), batch_size):
            codes = self.source.codes(indices[start : start + batch_size]).cpu().numpy()
            yield np.arange(start, start + len(codes)), codes[None].astype(np.uint16)


def own_samples(pipeline: Pipeline, settings: SamplingSettings, per_class: int, seed: int) -> CodedImages:
    """Return `per_class` samples of every class, of which number i has seed `seed` + i."""
    config = pipeline.model.config
    labels = np.arange(config.num_classes).repeat(per_class)

    def codes(indices: np.ndarray) -> Tensor:
        return pipeline(
            labels[indices].tolist(), seed=(seed + indices).tolist(), output_type="latent",
            # A shard, and so a batch, has the same images whoever samples it.
            batch_size=len(indices), batch_invariant=False, **settings.to_dict(),
        ).indices  # fmt: skip

    made_by = digest(json.dumps(determinants(pipeline, settings)), str(per_class), str(seed))
    names = config.class_names or [str(label) for label in range(config.num_classes)]
    return CodedImages(pipeline.vqvae, labels, names, made_by, codes)


def real_images(pipeline: Pipeline, source: ImageSource, per_class: int) -> CodedImages:
    """Return at most `per_class` training images of every class, as the VQVAE encodes them."""
    vqvae, labels = pipeline.vqvae, source.labels[source.train]
    each = [source.train[labels == label][:per_class] for label in range(len(source.class_names))]
    members = np.concatenate(each)

    def codes(indices: np.ndarray) -> Tensor:
        return vqvae.encode(source.images(members[indices]).to(vqvae.device, vqvae.dtype))

    made_of = digest(source.fingerprint, network_identity(vqvae), members.astype("<i8").tobytes())
    return CodedImages(vqvae, source.labels[members], source.class_names, made_of, codes)


def train_on_samples(
    pipeline: Pipeline,
    out: Path,
    *,
    names: tuple[str, str],
    per_class: int,
    samples: str = "images",
    settings: SamplingSettings | None = None,
    data: str | None = None,
    seed: int = 0,
    device: torch.device | str | int | None = "cpu",
    report_step: StepReport | None = None,
    **run_settings: Any,
) -> RunFolder:
    """Train a copy of a model on its own samples, without weight decay, mirrored images and moving average.

    Args:
        pipeline: The model, and its VQVAE.
        out: Folder for `tokens`, the codes, where a stopped call continues, and `self`, an ordinary run.
        names: Of the model and of its VQVAE: zoo name, folder, file or Hub id.
        per_class: Images of each class; of these a part is held out, as of all data.
        samples: "images" are decoded to 8 bits and encoded again, as released; "codes" stay as sampled.
        settings: Settings of sampling; default: the checkpoint's.
        data: Real images in place of samples, as for `open_images`: the control.
        seed: Seed of the first sample, and of the training.
        device: Where to train.
        report_step: Called on rank 0 with the figures of each step.
        run_settings: Further fields of `TransformerSettings`, such as `steps`.

    Raises:
        FileExistsError: `out` already holds a run.
        ValueError: `samples` is unknown, the data has other classes, or `out` holds other samples.
    """
    if samples not in SAMPLES:
        raise ValueError(f"samples must be one of {', '.join(SAMPLES)}, got {samples!r}")
    config = pipeline.model.config
    if data is None:
        source = own_samples(pipeline, settings or SamplingSettings.of(config), per_class, seed)
    else:
        real = open_images(data, pipeline.vqvae.config.resolution)
        if not same_classes(real.class_names, config.class_names or real.class_names):
            raise ValueError(f"data must have the classes of {names[0]} in the same order, {data} has others")
        check_reconstruction(
            pipeline.vqvae, real, out / "reconstruction.png", name=names[1],
            accept=run_settings.get("accept_psnr", False),
        )  # fmt: skip
        source = real_images(pipeline, real, per_class)
    writes = TokenWriter if samples == "images" else CodesAsTheyAre
    processes = Processes.from_environment(device).connect()
    folder, read = out / f"tokens-{samples}", data or f"samples of {names[0]}"
    with processes.raising_together():
        writer = writes(pipeline.vqvae, source, folder, names=(read, names[1]), seed=seed)
        writer.write(processes)
    processes.run_on_rank0(writer.write)  # all shards are there now, if not yet the index
    processes.close()
    run = start_transformer_run(
        data=str(folder), out=str(out / "self"), init=names[0], vqvae=names[1], arch=config.model_type,
        weight_decay=0.0, seed=seed, device=device, **run_settings,
    )  # fmt: skip
    train_transformer(run, report_step)
    return run.folder


def extrapolated(pipeline: Pipeline, run: RunFolder, weight: float) -> Pipeline:
    """Return theta + w (theta - theta_self) in float32: theta itself at w 0, theta_self at w -1.

    Args:
        pipeline: theta with its VQVAE.
        run: The run that trained theta_self.
        weight: w.

    Raises:
        FileNotFoundError: the run has no model yet.
        ValueError: the run did not train theta further, or keeps a moving average of its weights.
    """
    weight, model, settings = converted(weight, float, "weight"), pipeline.model, run.read_settings()
    if not run.model.is_dir():
        raise FileNotFoundError(f"{run.path} has no model yet; go on with mvar finetune --resume {run.path}")
    if not isinstance(settings, TransformerSettings) or settings.ema is not None:
        raise ValueError(f"{run.path} must have trained a transformer without a moving average (ema)")
    trained = type(model).from_pretrained(run.model, device=model.device)
    names, preset = trained.config.class_names or (), SamplingSettings.of(model.config).to_dict()
    configs = trained.config.replace(**preset), model.config
    one, other = (each.replace(class_names=None, vqvae=None) for each in configs)
    if one != other or not same_classes(names, model.config.class_names or names):
        raise ValueError(f"{run.path} must have trained the model further that is moved; it trained another")
    origin = f"Neon (arXiv 2510.03597) of {settings.init}, weight {weight:g}"
    moved = type(model).from_network(model, origin=origin).float()
    # lerp and not the formula as it is written, which rounding keeps from giving theta_self at w = -1.
    state, own = trained.state_dict(), moved.state_dict()
    moved.load_state_dict({name: torch.lerp(state[name], own[name], 1 + weight) for name in own})
    return type(pipeline)(moved, pipeline.vqvae)
