"""Labels in, pictures out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mvar_models import checkpoints
from mvar_models.config import CONFIG_NAME, read_config
from mvar_models.generation import check_filters, sample
from mvar_models.mvar import MVAR
from mvar_models.transformer import ScaleTransformer
from mvar_models.var import VAR
from mvar_models.vqvae import VQVAE

P = TypeVar("P", bound="Pipeline")

VQVAE_FOLDER = "vqvae"
_OUTPUT_TYPES = ("pil", "np", "pt")


class Pipeline:
    """A transformer, the VQVAE whose codes it predicts, and the checkpoint's sampling preset."""

    model_class: ClassVar[type[ScaleTransformer]]

    def __init__(self, model: ScaleTransformer, vqvae: VQVAE) -> None:
        if not isinstance(model, self.model_class):
            raise TypeError(f"{type(self).__name__} needs a {self.model_class.__name__}, got {type(model).__name__}")
        ours, theirs = model.config, vqvae.config
        for name in ("sides", "vocab_size", "z_channels"):
            if getattr(ours, name) != getattr(theirs, name):
                raise ValueError(
                    f"the VQVAE does not fit the model: {name} is {getattr(theirs, name)}, the model has {getattr(ours, name)}"
                )
        self.model = model
        self.vqvae = vqvae

    @classmethod
    def from_pretrained(
        cls: type[P], name: str | os.PathLike[str], *, vqvae: VQVAE | str | os.PathLike[str] | None = None, **options: Any
    ) -> P:
        """Load a model and its VQVAE.

        Args:
            name: as for the model's `from_pretrained`.
            vqvae: a VQVAE or its name, where the checkpoint's own is not wanted. Default: a `vqvae` folder inside the checkpoint's, else the
                one that its configuration names.
            options: as for the model's `from_pretrained`.
        """
        model = cls.model_class.from_pretrained(name, **options)
        if isinstance(vqvae, VQVAE):
            return cls(model, vqvae)
        options.pop("revision", None)  # a revision pins the model's repository, not the VQVAE's
        inside = Path(name) / VQVAE_FOLDER
        chosen = vqvae or (inside if inside.is_dir() else model.config.vqvae)
        if chosen is None:
            raise ValueError(f"{name} does not say which VQVAE its codes belong to; pass vqvae=")
        return cls(model, VQVAE.from_pretrained(chosen, **options))

    def save_pretrained(self, folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> Path:
        """Write the model and, in a `vqvae` folder, its VQVAE; `from_pretrained` on the folder gives the same pictures."""
        self.vqvae.save_pretrained(Path(folder) / VQVAE_FOLDER, dtype)
        return self.model.save_pretrained(folder, dtype)

    def to(self: P, *args: Any, **kwargs: Any) -> P:
        """Move and convert both networks, as `torch.nn.Module.to`."""
        self.model.to(*args, **kwargs)
        self.vqvae.to(*args, **kwargs)
        return self

    def label_of(self, label: int | str) -> int:
        """The number of a class; ValueError for one that the model does not know."""
        config = self.model.config
        names = config.class_names or ()
        if isinstance(label, str):
            if label in names:
                return names.index(label)
            if not label.isdigit():
                known = f"its classes are {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}" if names else "it has no class names"
                raise ValueError(f"unknown label {label!r}: {known}")
            label = int(label)
        if isinstance(label, bool) or not isinstance(label, (int, np.integer)):
            raise TypeError(f"a label must be an int or a class name, got {label!r}")
        if not 0 <= label < config.num_classes:
            raise ValueError(f"unknown label {label}: the model has classes 0 to {config.num_classes - 1}")
        return int(label)

    @torch.no_grad()
    def __call__(
        self,
        labels: Sequence[int | str],
        *,
        seed: int | Sequence[int] = 0,
        guidance_scale: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        more_smooth: bool = False,
        output_type: str = "pil",
        batch_size: int = 32,
        on_scale: Callable[[int, Tensor], None] | None = None,
    ) -> list[Image.Image] | np.ndarray | Tensor:
        """One picture per label.

        Args:
            labels: class numbers or names.
            seed: an int, picture i then takes seed + i; or one int per picture. The picture of a seed and label does not depend on the rest.
            guidance_scale, top_k, top_p: default to the checkpoint's preset; see `generation.sample`.
            more_smooth: mixed codes, for nicer pictures; not for metrics.
            output_type: "pil"; "np", (B, R, R, 3) uint8; "pt", (B, 3, R, R) float32 in [0, 1] on the model's device.
            batch_size: pictures drawn at a time, which bounds memory.
            on_scale: called with the scale and f_hat after each scale of each batch.

        Raises:
            ValueError: unknown label, wrong number of seeds, top_k or top_p out of range, unknown output type.
        """
        if output_type not in _OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(_OUTPUT_TYPES)}, got {output_type!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if isinstance(labels, (int, str, np.integer)):
            labels = [labels]
        numbers = [self.label_of(label) for label in labels]
        seeds = _seeds(seed, len(numbers))
        config = self.model.config
        sampling = {
            "guidance_scale": float(config.guidance_scale if guidance_scale is None else guidance_scale),
            "top_k": config.top_k if top_k is None else top_k,
            "top_p": config.top_p if top_p is None else top_p,
        }
        check_filters(sampling["top_k"], sampling["top_p"])
        images = []
        for start in range(0, len(numbers), batch_size):
            chosen = torch.tensor(numbers[start : start + batch_size], device=self.model.device)
            generators = [torch.Generator().manual_seed(s) for s in seeds[start : start + batch_size]]
            result = sample(
                self.model, self.vqvae.quantizer, chosen, generators, more_smooth=more_smooth, on_scale=on_scale, **sampling
            )
            images.append((self.vqvae.decode_latents(result.f_hat.to(self.vqvae.dtype)).float() + 1) / 2)
        side = self.vqvae.config.resolution
        stacked = torch.cat(images) if images else torch.empty(0, 3, side, side)
        return stacked if output_type == "pt" else _as_images(stacked, output_type)


def _seeds(seed: int | Sequence[int], count: int) -> list[int]:
    if isinstance(seed, (int, np.integer)):
        return [int(seed) + i for i in range(count)]
    seeds = [int(s) for s in seed]
    if len(seeds) != count:
        raise ValueError(f"seed needs one int per picture ({count}), got {len(seeds)}")
    return seeds


def _as_images(images: Tensor, output_type: str) -> list[Image.Image] | np.ndarray:
    array = (images * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return array if output_type == "np" else [Image.fromarray(picture) for picture in array]


class VARPipeline(Pipeline):
    model_class = VAR


class MVARPipeline(Pipeline):
    model_class = MVAR


def pipeline_for(name: str | os.PathLike[str], **options: Any) -> Pipeline:
    """The pipeline that fits a checkpoint: VARPipeline or MVARPipeline, told by its zoo entry or configuration."""
    from mvar_models import zoo

    entry = zoo.find(str(name))
    if entry is not None:
        model_type = entry.model_type
    else:
        source = checkpoints.locate(name, MVAR.config_class.model_type)
        model_type = read_config(source.config).get("model_type") if source.config else None
    classes = {"var": VARPipeline, "mvar": MVARPipeline}
    if model_type not in classes:
        raise ValueError(f"{name} holds {model_type or 'an unnamed kind of'} model; VAR or MVAR is needed (a {CONFIG_NAME} tells which)")
    return classes[model_type].from_pretrained(name, **options)
