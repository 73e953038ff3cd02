"""The pipelines: labels in, images out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mvar_models.checkpoints.peek import Checkpoint
from mvar_models.config import CONFIG_NAME, VQVAE_FOLDER
from mvar_models.files import write_text
from mvar_models.networks.mvar import MVAR
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.networks.var import VAR
from mvar_models.networks.vqvae import VQVAE
from mvar_models.pipeline.decoding import Decoded, Images, check_output_type, decode, join
from mvar_models.pipeline.loading import fitted, opened
from mvar_models.pipeline.options import DrawOptions, Labels, as_sequence, sampler_of, seeds_of
from mvar_models.sampling.filters import check_filters
from mvar_models.sampling.labels import label_number
from mvar_models.sampling.sampler import Sampler, sample

if TYPE_CHECKING:
    from typing_extensions import Unpack

P = TypeVar("P", bound="Pipeline")


class Pipeline:
    """A transformer, the VQVAE whose codes it predicts, and the preset that the checkpoint samples with.

    It serves every architecture. A subclass takes models of one architecture only.

    Attributes:
        model_class: The models that the pipeline takes.
    """

    model_class: ClassVar[type[ScaleTransformer]] = ScaleTransformer  # type: ignore[type-abstract]

    def __init__(self, model: ScaleTransformer, vqvae: VQVAE) -> None:
        if not isinstance(model, self.model_class):
            raise TypeError(
                f"{type(self).__name__} needs a {self.model_class.__name__}, got {type(model).__name__}"
            )
        ours, theirs = model.config, vqvae.config
        for name in ("sides", "vocab_size", "z_channels"):
            if getattr(ours, name) != getattr(theirs, name):
                raise ValueError(
                    f"the VQVAE does not fit the model: {name} is {getattr(theirs, name)}, "
                    f"the model has {getattr(ours, name)}"
                )
        self.model = model
        self.vqvae = vqvae

    @classmethod
    def from_pretrained(
        cls: type[P],
        name: str | os.PathLike[str] | Checkpoint,
        *,
        vqvae: VQVAE | str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> P:
        """Load a model and its VQVAE.

        Args:
            name: As for the model's `from_pretrained`.
            vqvae: A VQVAE or its name, if the checkpoint's own is not wanted. Default: the one in the
                checkpoint's `vqvae` folder, else the one that its configuration names.
            options: As for the model's `from_pretrained`.
        """
        checkpoint = opened(name, options)
        network: type[ScaleTransformer] = cls.model_class
        if network is ScaleTransformer:
            network = checkpoint.architecture().network_class()
        model = network.from_pretrained(checkpoint, **options)
        if not isinstance(vqvae, VQVAE):
            options.pop("num_classes", None)
            vqvae = VQVAE.from_pretrained(checkpoint.open_vqvae(vqvae), **options)
        return cls(model, fitted(vqvae, model.config.sides))

    def save_pretrained(self, folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> Path:
        """Write the model and, in a `vqvae` folder, its VQVAE.

        `from_pretrained` on the folder draws the same images.
        """
        folder = Path(folder)
        self.vqvae.save_pretrained(folder / VQVAE_FOLDER, dtype)
        self.model.save_pretrained(folder, dtype)
        # The VQVAE in the folder counts, not the one that the checkpoint named before.
        write_text(folder / CONFIG_NAME, self.model.config.replace(vqvae=None).to_json())
        return folder

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Upload both networks to the Hub as org/name, with a model card, and return the commit's address.

        Args:
            repository: Hub id, "org/name".
            options: As for `mvar_models.checkpoints.push.push_to_hub`.
        """
        # Imported here, because huggingface_hub is slow to import and sampling does not need it.
        from mvar_models.checkpoints.push import CardFacts, push_to_hub

        facts = CardFacts(type(self).__name__, self.model.config, self.model.num_parameters(), draws=True)
        return push_to_hub(self.save_pretrained, facts, repository, **options)

    def to(self: P, *args: Any, **kwargs: Any) -> P:
        """Move and convert both networks, as `torch.nn.Module.to`."""
        self.model.to(*args, **kwargs)
        self.vqvae.to(*args, **kwargs)
        return self

    def label_of(self, label: int | str) -> int:
        """Return the number of a class; see `label_number`."""
        config = self.model.config
        return label_number(label, config.num_classes, config.class_names or ())

    @overload
    def __call__(
        self,
        labels: Labels,
        *,
        output_type: Literal["pil"] = "pil",
        return_scales: Literal[False] = False,
        **options: Unpack[DrawOptions],
    ) -> list[Image.Image]: ...

    @overload
    def __call__(
        self,
        labels: Labels,
        *,
        output_type: Literal["np"],
        return_scales: Literal[False] = False,
        **options: Unpack[DrawOptions],
    ) -> np.ndarray: ...

    @overload
    def __call__(
        self,
        labels: Labels,
        *,
        output_type: Literal["pt"],
        return_scales: Literal[False] = False,
        **options: Unpack[DrawOptions],
    ) -> Tensor: ...

    @overload
    def __call__(
        self,
        labels: Labels,
        *,
        output_type: Literal["pil"] = "pil",
        return_scales: Literal[True],
        **options: Unpack[DrawOptions],
    ) -> tuple[list[Image.Image], list[list[Image.Image]]]: ...

    @overload
    def __call__(
        self,
        labels: Labels,
        *,
        output_type: Literal["np"],
        return_scales: Literal[True],
        **options: Unpack[DrawOptions],
    ) -> tuple[np.ndarray, list[np.ndarray]]: ...

    @overload
    def __call__(
        self,
        labels: Labels,
        *,
        output_type: Literal["pt"],
        return_scales: Literal[True],
        **options: Unpack[DrawOptions],
    ) -> tuple[Tensor, list[Tensor]]: ...

    @torch.no_grad()
    def __call__(
        self,
        labels: Labels,
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
    ) -> Images | tuple[Images, Sequence[Images]]:
        """Draw one image per label.

        Args:
            labels: Class numbers or names.
            seed: An int, and image i takes seed + i; or one int per image. The random numbers of an image
                depend on its seed alone.
            guidance_scale: Weight of classifier-free guidance at the finest scale. Default: the preset.
            top_k: Codes to draw from, at most; 0 is off. Default: the preset.
            top_p: Probability of the codes to draw from, at least; 0 is off. Default: the preset.
            sampler: How codes are chosen: a name in `mvar_models.sampling.sampler.SAMPLERS` or a `Sampler`.
            more_smooth: Same as sampler="smooth": mix codes, which looks nicer and is not for metrics.
            output_type: "pil"; "np" for (B, R, R, 3) uint8; "pt" for (B, 3, R, R) float32 in [0, 1] on the
                model's device.
            batch_size: Images drawn at a time, which bounds memory.
            batch_invariant: Compute every image by itself, so that its bits do not depend on the others.
                Products of other batch sizes round differently, which now and then changes a pixel or a code.
                Default: on a CPU, where it costs little unless the model is tiny.
            on_scale: Called with the index of the scale and f_hat after each scale of each batch.
            return_scales: Also return the images after each scale; each of them is decoded.
            progress: Show a bar.

        Returns:
            A list of PIL images, an array or a tensor, as `output_type` says. With `return_scales` a pair of
            that and a list of the same with one entry per scale.

        Raises:
            ValueError: unknown label, sampler or output type, wrong number of seeds, filters out of range.
        """
        check_output_type(output_type)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        numbers = [self.label_of(label) for label in as_sequence(labels)]
        seeds = seeds_of(seed, len(numbers))
        config = self.model.config
        guidance_scale = float(config.guidance_scale if guidance_scale is None else guidance_scale)
        top_k = config.top_k if top_k is None else top_k
        top_p = config.top_p if top_p is None else top_p
        check_filters(top_k, top_p)
        chooser = sampler_of(sampler, more_smooth)
        last = len(config.sides) - 1
        results: list[list[Decoded]] = [[] for _ in range(last + 1 if return_scales else 1)]
        alone = self.model.device.type == "cpu" if batch_invariant is None else batch_invariant
        at_a_time = 1 if alone else batch_size
        bar = tqdm(
            total=len(numbers) * (last + 1),
            unit="scale",
            desc="sampling",
            dynamic_ncols=True,
            disable=not progress,
        )
        with bar:
            for start in range(0, len(numbers), at_a_time):
                batch = torch.tensor(numbers[start : start + at_a_time], device=self.model.device)
                generators = [
                    torch.Generator().manual_seed(each) for each in seeds[start : start + at_a_time]
                ]

                def after_scale(scale: int, f_hat: Tensor, count: int = len(batch)) -> None:
                    if return_scales and scale < last:
                        results[scale].append(decode(self.vqvae, f_hat, output_type))
                    bar.update(count)
                    if on_scale is not None:
                        on_scale(scale, f_hat)

                drawn = sample(
                    self.model, self.vqvae.quantizer, batch, generators,
                    guidance_scale=guidance_scale, top_k=top_k, top_p=top_p, sampler=chooser,
                    on_scale=after_scale, keep_logits=False,
                )  # fmt: skip
                results[-1].append(decode(self.vqvae, drawn.f_hat, output_type))
        joined = [join(self.vqvae, parts, output_type) for parts in results]
        return (joined[-1], joined) if return_scales else joined[-1]


class VARPipeline(Pipeline):
    model_class = VAR


class MVARPipeline(Pipeline):
    model_class = MVAR
