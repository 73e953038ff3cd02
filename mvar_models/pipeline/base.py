"""The pipelines, labels in and images out, and the one that fits a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import nn

from mvar_models.checkpoints.checkpoint import Checkpoint, open_checkpoint
from mvar_models.checkpoints.pretrained import save_model
from mvar_models.config import RELEASED_SIDES, VQVAE_FOLDER
from mvar_models.devices import checked_device
from mvar_models.networks.markov_var import MarkovVAR
from mvar_models.networks.mvar import MVAR
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.networks.var import VAR
from mvar_models.networks.vqvae import VQVAE
from mvar_models.pipeline.drafting import sample_drafted
from mvar_models.pipeline.editing import Editing
from mvar_models.pipeline.identity import network_identity
from mvar_models.pipeline.output import PipelineOutput, check_output_type
from mvar_models.pipeline.request import Generators, Labels, Request, as_sequence, sample_batches
from mvar_models.registry import architecture
from mvar_models.sampling.engine import Engine
from mvar_models.sampling.hooks import LogitsProcessor, ScaleCallback
from mvar_models.sampling.labels import label_number
from mvar_models.sampling.sampler import SampleResult
from mvar_models.sampling.settings import SamplingOptions, SamplingSettings, read_preset

if TYPE_CHECKING:
    from typing_extensions import Unpack

P = TypeVar("P", bound="Pipeline")


class Pipeline(Editing):
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
        check_fit(model, vqvae)
        self.model = model
        self.vqvae = vqvae
        self._engine: Engine | None = None

    @classmethod
    def from_pretrained(
        cls: type[P],
        name: str | os.PathLike[str] | Checkpoint,
        *,
        vqvae: VQVAE | str | os.PathLike[str] | None = None,
        preset: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> P:
        """Load a model and its VQVAE.

        Args:
            name: As for the model's `from_pretrained`.
            vqvae: A VQVAE or its name, if the checkpoint's own is not wanted. Default: the one in the
                checkpoint's `vqvae` folder, else the one that its configuration names.
            preset: JSON file of `SamplingSettings`, as `mvar sweep` writes it, in place of the checkpoint's.
                `save_pretrained` keeps it.
            options: As for the model's `from_pretrained`.
        """
        settings = None if preset is None else read_preset(preset)
        checkpoint = opened(name, options)
        network: type[ScaleTransformer] = cls.model_class
        if network is ScaleTransformer:
            network = checkpoint.architecture().network_class()
        model = network.from_pretrained(checkpoint, **options)
        if settings is not None:
            model.config = model.config.replace(**settings.to_dict())
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
        # The VQVAE in the folder counts, not the one that the checkpoint named before.
        save_model(self.model.state_dict(), self.model.config.replace(vqvae=None), folder, dtype)
        return folder

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Upload both networks to the Hub as org/name, with a model card, and return the commit's address.

        Args:
            repository: Hub id, "org/name".
            options: As for `mvar_models.checkpoints.push.push_to_hub`.
        """
        # Imported here, because huggingface_hub is slow to import and sampling does not need it.
        from mvar_models.checkpoints.push import CardFacts, push_to_hub

        facts = CardFacts(type(self).__name__, self.model.config, self.model.num_parameters(), generates=True)
        return push_to_hub(self.save_pretrained, facts, repository, **options)

    @property
    def components(self) -> dict[str, nn.Module]:
        """The networks by the names of the constructor's arguments, which takes them again."""
        return {"model": self.model, "vqvae": self.vqvae}

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the transformer's weights."""
        return self.model.dtype

    def to(self: P, *args: Any, **kwargs: Any) -> P:
        """Move and convert both networks, as `torch.nn.Module.to`.

        Raises:
            ValueError: this machine does not have the device.
        """
        if args and isinstance(args[0], (str, int, torch.device)):
            args = (checked_device(args[0]), *args[1:])
        if kwargs.get("device") is not None:
            kwargs["device"] = checked_device(kwargs["device"])
        self.model.to(*args, **kwargs)
        self.vqvae.to(*args, **kwargs)
        return self

    def compile(self: P, *, decoder_dtype: torch.dtype | None = None) -> P:
        """Draw by CUDA graphs from now on, one per batch size, guidance and filters, captured at first use.

        Images stay the same, also after a network is changed or replaced. What a graph cannot hold is drawn
        as before, and the log says why: callbacks, processors, samplers other than
        "ancestral", edits, modules with hooks or of other packages, such as adapters, devices other than
        CUDA. On a CPU nothing is compiled.

        Args:
            decoder_dtype: Also convert the decoder to this type, such as torch.bfloat16; the codes do not
                depend on it. Default: leave it as it is.

        Returns:
            The pipeline itself.
        """
        if decoder_dtype is not None:
            self.vqvae.convert_decoder(decoder_dtype)
        self._engine = Engine(self.model, self.vqvae)
        return self

    def _current_engine(self) -> Engine | None:
        """Return the engine of `compile`, a new one if a network has been replaced since."""
        engine = self._engine
        if engine is not None and (engine.model is not self.model or engine.vqvae is not self.vqvae):
            engine = self._engine = Engine(self.model, self.vqvae)
        return engine

    def label_of(self, label: int | str) -> int:
        """Return the number of a class; see `label_number`."""
        config = self.model.config
        return label_number(label, config.num_classes, config.class_names or ())

    def numbers_of(self, labels: Labels) -> list[int]:
        """Return the class numbers of labels, once the VQVAE is known to fit the model."""
        check_fit(self.model, self.vqvae)
        return [self.label_of(label) for label in as_sequence(labels)]

    @torch.no_grad()
    def __call__(
        self,
        labels: Labels,
        *,
        seed: int | Sequence[int] = 0,
        generator: Generators | None = None,
        num_images_per_label: int = 1,
        processors: Sequence[LogitsProcessor] = (),
        output_type: str = "pil",
        batch_size: int = 32,
        batch_invariant: bool | None = None,
        on_scale: ScaleCallback | None = None,
        progress: bool = False,
        refiner: Pipeline | None = None,
        refine_from: int | None = None,
        **settings: Unpack[SamplingOptions],
    ) -> PipelineOutput:
        """Generate one image per label, or several.

        Args:
            labels: Class numbers or names.
            seed: An int, and image i takes seed + i; or one int per image. The random numbers of an image
                depend on its seed alone.
            generator: Instead of `seed`: one CPU generator per image, each of which is read; or one
                generator, which gives each image a seed.
            num_images_per_label: Images per label; those of a label follow each other.
            processors: Change the guided logits of each scale before the filters.
            output_type: "pil"; "np" for (B, R, R, 3) uint8; "pt" for (B, 3, R, R) float32 in [0, 1] on the
                model's device; "latent" for f_hat (B, z, h, h), which is not decoded.
            batch_size: Images generated at a time, which bounds memory.
            batch_invariant: Compute every image by itself, so that its bits do not depend on the others.
                Products of other batch sizes round differently, which now and then changes a pixel or a code.
                Default: on a CPU, where it costs little unless the model is tiny.
            on_scale: Called with the index of the scale and f_hat after each scale of each batch. A tensor
                that it returns replaces f_hat.
            progress: Show a bar.
            refiner: A pipeline of the same VQVAE, whose model samples the scales from `refine_from` on, with
                its own preset.
            refine_from: First scale of the refiner.
            settings: Fields of `SamplingSettings`, such as guidance_scale. Default: the checkpoint's.

        Returns:
            The images, which indexing and iterating give, with their codes and the images after each scale.

        Raises:
            TypeError: a label or generator of another type.
            ValueError: unknown label, sampler or output type, wrong number of seeds, numbers out of range, or
                a refiner of another VQVAE, other scales or other classes.
        """
        check_output_type(output_type)
        request = Request.of(
            self.model, self.numbers_of(labels), seed=seed, generator=generator,
            num_images_per_label=num_images_per_label, processors=processors, batch_size=batch_size,
            batch_invariant=batch_invariant, on_scale=on_scale, progress=progress, **settings,
        )  # fmt: skip
        if refiner is not None or refine_from is not None:
            batches = self._drafted(request, refiner, refine_from)
        else:
            engine = None if output_type == "latent" else self._current_engine()
            batches = sample_batches(self.model, self.vqvae.quantizer, request, engine=engine)
        return PipelineOutput.of(batches, self.vqvae, output_type)

    def _drafted(
        self, request: Request, refiner: Pipeline | None, refine_from: int | None
    ) -> Iterator[SampleResult]:
        if refiner is None or refine_from is None:
            raise ValueError("refiner and refine_from go together")
        ours, theirs = self.vqvae, refiner.vqvae
        if ours is not theirs and network_identity(ours) != network_identity(theirs):
            raise ValueError("refiner has another VQVAE than the pipeline, so its codes mean something else")
        own = SamplingSettings.of(refiner.model.config)
        return sample_drafted(self.model, refiner.model, ours.quantizer, request, refine_from, own)


class VARPipeline(Pipeline):
    model_class = VAR


class MVARPipeline(Pipeline):
    model_class = MVAR


class MarkovVARPipeline(Pipeline):
    model_class = MarkovVAR


# Options of `from_pretrained` that say where a checkpoint is rather than what to make of it.
_WHERE = ("subfolder", "revision", "cache_dir", "local_files_only", "token")


def opened(name: str | os.PathLike[str] | Checkpoint, options: dict[str, Any]) -> Checkpoint:
    """Open a checkpoint with the options that say where it is, which are then removed from `options`."""
    where = {key: options.pop(key) for key in _WHERE if key in options}
    return open_checkpoint(name, **where)


def check_fit(model: ScaleTransformer, vqvae: VQVAE) -> None:
    """Raise ValueError unless the VQVAE has the codes and the pyramid that the model draws."""
    for name in ("sides", "vocab_size", "z_channels"):
        ours, theirs = getattr(model.config, name), getattr(vqvae.config, name)
        if ours != theirs:
            raise ValueError(f"the VQVAE does not fit the model: {name} is {theirs}, the model has {ours}")


def fitted(vqvae: VQVAE, sides: Sequence[int]) -> VQVAE:
    """Return the VQVAE for a model of that pyramid.

    The weights of a released VQVAE serve every resolution, so it takes those sides; others stay as they are.
    """
    if vqvae.config.sides == tuple(sides) or vqvae.config.sides not in RELEASED_SIDES.values():
        return vqvae
    return vqvae.with_sides(sides)


def pipeline_for(
    name: str | os.PathLike[str] | Checkpoint, arch: str | None = None, **options: Any
) -> Pipeline:
    """Load the pipeline that fits a checkpoint.

    Args:
        name: As for `Pipeline.from_pretrained`.
        arch: What to read a bare released state dict as, which is the same for all architectures.
        options: As for `Pipeline.from_pretrained`.

    Raises:
        ValueError: nothing tells which architecture the checkpoint is of, or it draws no images.
    """
    checkpoint = opened(name, options)
    pipeline: type[Pipeline] = checkpoint.architecture(arch).pipeline_class()
    return pipeline.from_pretrained(checkpoint, **options)


def model_for(
    name: str | os.PathLike[str] | Checkpoint, arch: str | None = None, **options: Any
) -> ScaleTransformer:
    """Load the transformer of a checkpoint; see `pipeline_for` for the arguments and errors."""
    checkpoint = opened(name, options)
    network: type[ScaleTransformer] = checkpoint.architecture(arch).network_class()
    return network.from_pretrained(checkpoint, **options)


def pipeline_of(model: ScaleTransformer, vqvae: VQVAE) -> Pipeline:
    """Join a transformer and its VQVAE in the pipeline of the transformer's architecture."""
    pipeline: type[Pipeline] = architecture(model.config.model_type).pipeline_class()
    return pipeline(model, vqvae)
