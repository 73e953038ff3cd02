"""Labels in, pictures out."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mvar_models.checkpoints import load as checkpoints
from mvar_models.checkpoints.read_tensors import read
from mvar_models.config import CONFIG_NAME, RELEASED_SIDES, VQVAE_FOLDER, read_config
from mvar_models.devices import fit_batch
from mvar_models.images import to_uint8
from mvar_models.networks.mvar import MVAR
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.networks.var import VAR
from mvar_models.networks.vqvae import VQVAE
from mvar_models.sampling.filters import check_filters
from mvar_models.sampling.sampler import Sampler, make_sampler, sample

P = TypeVar("P", bound="Pipeline")

_RELEASED_VQVAE = "vae-ch160v4096z32"
# Pixels decoded at a time: four pictures of 256 px. The released decoder holds about 0.3 GB for each in float32.
_PIXELS_AT_A_TIME = 4 * 256 * 256
_OUTPUT_TYPES = ("pil", "np", "pt")


class Pipeline:
    """A transformer, the VQVAE whose codes it predicts, and the checkpoint's sampling preset."""

    model_class: ClassVar[type[ScaleTransformer]]

    def __init__(self, model: ScaleTransformer, vqvae: VQVAE) -> None:
        if not isinstance(model, self.model_class):
            raise TypeError(
                f"{type(self).__name__} needs a {self.model_class.__name__}, got {type(model).__name__}"
            )
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
        cls: type[P],
        name: str | os.PathLike[str],
        *,
        vqvae: VQVAE | str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> P:
        """Load a model and its VQVAE.

        Args:
            name: as for the model's `from_pretrained`.
            vqvae: a VQVAE or its name, where the checkpoint's own is not wanted. Default: a `vqvae` folder inside the checkpoint's, else the
                one that its configuration names.
            options: as for the model's `from_pretrained`.
        """
        model = cls.model_class.from_pretrained(name, **options)
        if not isinstance(vqvae, VQVAE):
            options.pop("num_classes", None)
            vqvae = _load_vqvae(name, vqvae or model.config.vqvae, options)
        return cls(model, fitted(vqvae, model.config.sides))

    def save_pretrained(self, folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> Path:
        """Write the model and, in a `vqvae` folder, its VQVAE; `from_pretrained` on the folder gives the same pictures."""
        self.vqvae.save_pretrained(Path(folder) / VQVAE_FOLDER, dtype)
        return self.model.save_pretrained(folder, dtype)

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Upload both networks to the Hub as org/name, with a model card; see `mvar_models.checkpoints.push.push_to_hub`. Returns the address."""
        from mvar_models.checkpoints.push import push_to_hub

        return push_to_hub(self, repository, **options)

    def to(self: P, *args: Any, **kwargs: Any) -> P:
        """Move and convert both networks, as `torch.nn.Module.to`."""
        self.model.to(*args, **kwargs)
        self.vqvae.to(*args, **kwargs)
        return self

    def label_of(self, label: int | str) -> int:
        """The number of a class, by number, name, or one of the synonyms in a name ("tench, Tinca tinca"), in whatever case.

        Raises:
            ValueError: the model does not know it, or it names several classes.
        """
        config = self.model.config
        names = config.class_names or ()
        if isinstance(label, str):
            found = [number for number, name in enumerate(names) if label == name]
            found = found or [number for number, name in enumerate(names) if label in name.split(", ")]
            found = found or [
                number
                for number, name in enumerate(names)
                if label.casefold() in (name.casefold(), *name.casefold().split(", "))
            ]
            if len(found) > 1:
                raise ValueError(
                    f"label {label!r} is the name of classes {', '.join(map(str, found))}; give the number"
                )
            if found:
                return found[0]
            if not label.isdigit():
                raise ValueError(f"unknown label {label!r}: {_known(label, names)}")
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
        sampler: str | Sampler = "ancestral",
        more_smooth: bool = False,
        output_type: str = "pil",
        batch_size: int = 32,
        batch_invariant: bool | None = None,
        on_scale: Callable[[int, Tensor], None] | None = None,
        return_scales: bool = False,
        progress: bool = False,
    ) -> Any:
        """One picture per label.

        Args:
            labels: class numbers or names.
            seed: an int, picture i then takes seed + i; or one int per picture. The random numbers of a picture depend on its seed alone.
            guidance_scale, top_k, top_p: default to the checkpoint's preset; see `generation.sample`.
            more_smooth: mixed codes, for nicer pictures; not for metrics.
            output_type: "pil"; "np", (B, R, R, 3) uint8; "pt", (B, 3, R, R) float32 in [0, 1] on the model's device.
            batch_size: pictures drawn at a time, which bounds memory.
            batch_invariant: compute every picture by itself, so that its bits do not depend on the others. In a batch, matrix products round
                differently by its size, and now and then a pixel or a code falls the other way. Default: on a CPU, where it costs little for
                models of some size.
            on_scale: called with the scale and f_hat after each scale of each batch.
            return_scales: also return what the picture was after each scale: a list with one entry per scale, each like the first result. It
                decodes every scale of every picture.
            progress: show a bar.

        Returns:
            list of PIL images, array or tensor, as `output_type` says; with `return_scales` a pair of that and a list.

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
        if more_smooth and sampler != "ancestral":
            raise ValueError(
                f"more_smooth=True is sampler='smooth'; it cannot be combined with sampler={sampler!r}"
            )
        chooser = make_sampler("smooth" if more_smooth else sampler)
        scales = len(config.sides)
        results: list[list[Any]] = [[] for _ in range(scales if return_scales else 1)]
        bar = _bar(len(numbers) * scales) if progress else None
        alone = self.model.device.type == "cpu" if batch_invariant is None else batch_invariant
        at_a_time = 1 if alone else batch_size
        for start in range(0, len(numbers), at_a_time):
            chosen = torch.tensor(numbers[start : start + at_a_time], device=self.model.device)
            generators = [torch.Generator().manual_seed(s) for s in seeds[start : start + at_a_time]]

            def after_scale(scale: int, f_hat: Tensor, count: int = len(chosen)) -> None:
                if return_scales and scale < scales - 1:
                    results[scale].append(self._decode(f_hat, output_type))
                if bar is not None:
                    bar.update(count)
                if on_scale is not None:
                    on_scale(scale, f_hat)

            drawn = sample(
                self.model,
                self.vqvae.quantizer,
                chosen,
                generators,
                sampler=chooser,
                on_scale=after_scale,
                keep_logits=False,
                **sampling,
            )
            results[-1].append(self._decode(drawn.f_hat, output_type))
        if bar is not None:
            bar.close()
        joined = [self._join(parts, output_type) for parts in results]
        return (joined[-1], joined) if return_scales else joined[-1]

    def _decode(self, f_hat: Tensor, output_type: str) -> Tensor | np.ndarray:
        """Pictures of latents, a few at a time: float32 on the model's device for "pt", else uint8 arrays."""
        step = fit_batch(_PIXELS_AT_A_TIME, self.vqvae.config.resolution**2)
        parts: list[Any] = []
        for piece in f_hat.split(step):
            images = self.vqvae.decode_latents(piece.to(self.vqvae.dtype))
            parts.append((images.float() + 1) / 2 if output_type == "pt" else to_uint8(images))
        return torch.cat(parts) if output_type == "pt" else np.concatenate(parts)

    def _join(self, parts: list[Any], output_type: str) -> list[Image.Image] | np.ndarray | Tensor:
        side = self.vqvae.config.resolution
        if output_type == "pt":
            return torch.cat(parts) if parts else torch.empty(0, 3, side, side, device=self.model.device)
        array = np.concatenate(parts) if parts else np.empty((0, side, side, 3), dtype=np.uint8)
        return array if output_type == "np" else [Image.fromarray(picture) for picture in array]


def _load_vqvae(
    checkpoint: str | os.PathLike[str], vqvae: str | os.PathLike[str] | None, options: dict[str, Any]
) -> VQVAE:
    """The VQVAE of that name, or the one that belongs to a checkpoint which names none."""
    path = Path(checkpoint)
    if vqvae is None and path.is_dir() and not (path / VQVAE_FOLDER).is_dir():
        raise ValueError(f"{checkpoint} does not say which VQVAE its codes belong to; pass vqvae=")
    if (
        vqvae is None and path.is_file()
    ):  # a released program's: beside the transformer, else there is one such VQVAE
        vqvae = path if path.suffix != ".safetensors" and read(path).has_vqvae else _RELEASED_VQVAE
    if vqvae is None:
        return VQVAE.from_pretrained(checkpoint, subfolder=VQVAE_FOLDER, **options)
    # A revision pins the model's repository, not the VQVAE's.
    return VQVAE.from_pretrained(vqvae, **{key: value for key, value in options.items() if key != "revision"})


def fitted(vqvae: VQVAE, sides: Sequence[int]) -> VQVAE:
    """The VQVAE for a model of that pyramid: a released one's weights serve every resolution, and its file names none; others stay as they are."""
    if vqvae.config.sides == tuple(sides) or vqvae.config.sides not in RELEASED_SIDES.values():
        return vqvae
    return vqvae.with_sides(sides)


def vqvae_of(name: str | os.PathLike[str]) -> str | None:
    """Name, folder or file of the VQVAE that a checkpoint goes with; None where it does not say. Of a Hub repository it is fetched."""
    from mvar_models.checkpoints import zoo

    entry, path = zoo.find(str(name)), Path(name)
    if entry is None and not path.exists() and zoo.looks_like_hub_id(str(name)):
        config = zoo.fetch_repository(str(name)).config
        named = None if config is None else read_config(config).get("vqvae")
        return named or str(zoo.fetch_repository(str(name), subfolder=VQVAE_FOLDER).weights.parent)
    if path.is_file() and path.suffix != ".safetensors":
        return str(path) if read(path).has_vqvae else None
    if entry is not None and "vqvae" in entry.preset:
        return str(entry.preset["vqvae"])
    if entry is not None and entry.model_type != "vqvae" and entry.repository == "embedded":
        config = zoo.fetch(entry, entry.model_type).config
        return None if config is None else read_config(config).get("vqvae")
    if (path / VQVAE_FOLDER / CONFIG_NAME).is_file():
        return str(path / VQVAE_FOLDER)
    return read_config(path / CONFIG_NAME).get("vqvae") if (path / CONFIG_NAME).is_file() else None


def _bar(total: int) -> Any:
    from mvar_models.optional import require

    return require("tqdm", "train").tqdm(total=total, unit="scale", desc="sampling", dynamic_ncols=True)


def _known(label: str, names: Sequence[str]) -> str:
    """What a user may have meant, else the first classes that there are."""
    single = {each.casefold(): each for name in names for each in name.split(", ")}
    close = [single[each] for each in difflib.get_close_matches(label.casefold(), single, n=3, cutoff=0.8)]
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return (
        f"its classes are {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
        if names
        else "it has no class names"
    )


def _seeds(seed: int | Sequence[int], count: int) -> list[int]:
    if isinstance(seed, (int, np.integer)):
        return [int(seed) + i for i in range(count)]
    seeds = [int(s) for s in seed]
    if len(seeds) != count:
        raise ValueError(f"seed needs one int per picture ({count}), got {len(seeds)}")
    return seeds


class VARPipeline(Pipeline):
    model_class = VAR


class MVARPipeline(Pipeline):
    model_class = MVAR


def pipeline_for(name: str | os.PathLike[str], arch: str | None = None, **options: Any) -> Pipeline:
    """The pipeline that fits a checkpoint: VARPipeline or MVARPipeline; see `kind_of` for `arch` and errors."""
    return _PIPELINES[kind_of(name, arch, **options)].from_pretrained(name, **options)


def model_for(name: str | os.PathLike[str], arch: str | None = None, **options: Any) -> ScaleTransformer:
    """The VAR or MVAR of a checkpoint; see `kind_of` for `arch` and errors."""
    return _PIPELINES[kind_of(name, arch, **options)].model_class.from_pretrained(name, **options)


def kind_of(name: str | os.PathLike[str], arch: str | None = None, **options: Any) -> str:
    """ "var" or "mvar": what a checkpoint holds.

    Its zoo entry, its configuration or the released program that wrote it tells; a bare released state dict is alike for both and needs `arch`.

    Raises:
        ValueError: none of them tells, or it is another kind of model.
    """
    from mvar_models.checkpoints import zoo

    entry = zoo.find(str(name))
    if entry is not None:
        kind = entry.model_type
    else:
        hub_options = {
            key: options[key]
            for key in ("revision", "cache_dir", "local_files_only", "token")
            if key in options
        }
        source = checkpoints.locate(name, MVAR.config_class.model_type, **hub_options)
        kind = (
            read_config(source.config).get("model_type")
            if source.config
            else (arch or read(source.weights).kind)
        )
    if kind is None:
        raise ValueError(
            f"{name} does not say whether it is a VAR or an MVAR: without {CONFIG_NAME} both look alike; pass arch='var' or 'mvar'"
        )
    if kind not in _PIPELINES:
        raise ValueError(f"{name} is a {kind} model; a VAR or an MVAR is needed")
    return str(kind)


_PIPELINES: dict[str, type[Pipeline]] = {"var": VARPipeline, "mvar": MVARPipeline}
