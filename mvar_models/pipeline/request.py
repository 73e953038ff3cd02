"""The request of a call: its checked arguments, and the batches that are sampled for it.

Image i samples from `seed` + i, or from the i-th of the seeds or generators given, so that
`generator=[torch.Generator().manual_seed(s)]` is `seed=[s]`. One generator alone gives a seed to each image,
in order: it moves on from call to call, and an image still does not depend on the batch size.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

from mvar_models.networks.quantizer import MultiScaleQuantizer
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.records import converted, within
from mvar_models.sampling.engine import Engine
from mvar_models.sampling.hooks import LogitsProcessor, ScaleCallback
from mvar_models.sampling.progress import SAMPLING, counting, sampled
from mvar_models.sampling.sampler import SampleResult, sample
from mvar_models.sampling.settings import SamplingOptions, SamplingSettings

if TYPE_CHECKING:
    from typing_extensions import Unpack

Labels = int | str | Sequence[int | str]
Generators = torch.Generator | Sequence[torch.Generator]

_MOST_SEEDS = 2**63 - 1
Seed = Annotated[int, within(0, 2**64 - 1)]
_Count = Annotated[int, within(1, 2**31)]


class CallOptions(SamplingOptions, total=False):
    """Keyword arguments that every method of a pipeline takes."""

    seed: int | Sequence[int]
    generator: Generators | None
    num_images_per_label: int
    processors: Sequence[LogitsProcessor]
    batch_size: int
    batch_invariant: bool | None
    on_scale: ScaleCallback | None
    progress: bool


@dataclass(frozen=True)
class Request:
    """A call after its checks: what to sample, one entry per image, and how.

    Attributes:
        labels: Class of each image.
        sources: Seed or generator of each image.
        settings: Guidance, filters and sampler.
        processors: See `sample`.
        batch_size: Images computed at a time.
        on_scale: See `sample`.
        progress: Whether to show a bar.
        share: Share of the work on an image that this is, for the count of progress.
    """

    labels: list[int]
    sources: list[int] | list[torch.Generator]
    settings: SamplingSettings
    processors: Sequence[LogitsProcessor]
    batch_size: int
    on_scale: ScaleCallback | None
    progress: bool
    share: float = 1.0

    @classmethod
    def of(
        cls,
        model: ScaleTransformer,
        labels: Sequence[int],
        *,
        seed: int | Sequence[int] = 0,
        generator: Generators | None = None,
        num_images_per_label: int = 1,
        processors: Sequence[LogitsProcessor] = (),
        batch_size: int = 32,
        batch_invariant: bool | None = None,
        on_scale: ScaleCallback | None = None,
        progress: bool = False,
        **settings: Unpack[SamplingOptions],
    ) -> Request:
        """Check the arguments of a call, and take settings that are not given from the checkpoint.

        Raises:
            TypeError: generators or numbers of another type.
            ValueError: unknown sampler, wrong number of seeds or generators, numbers out of range.
        """
        batch_size = converted(batch_size, _Count, "batch_size")
        num_images_per_label = converted(num_images_per_label, _Count, "num_images_per_label")
        each = [label for label in labels for _ in range(num_images_per_label)]
        alone = model.device.type == "cpu" if batch_invariant is None else batch_invariant
        return cls(
            labels=each,
            sources=sources_of(seed, generator, len(each)),
            settings=SamplingSettings.of(model.config, **settings),
            processors=tuple(processors),
            batch_size=1 if alone else batch_size,
            on_scale=on_scale,
            progress=progress,
        )

    def generators(self, images: slice) -> list[torch.Generator]:
        """Return the generators of some of the images."""
        return [
            source if isinstance(source, torch.Generator) else torch.Generator("cpu").manual_seed(source)
            for source in self.sources[images]
        ]


# Arguments of `sample` for some of the images: given codes, scales, f_hat.
Prepare = Callable[[slice], dict[str, Any]]


def sample_batches(
    model: ScaleTransformer,
    quantizer: MultiScaleQuantizer,
    request: Request,
    *,
    scales: range | None = None,
    prepare: Prepare | None = None,
    engine: Engine | None = None,
) -> Iterator[SampleResult]:
    """Sample the images of a request, `request.batch_size` at a time.

    Args:
        model: The transformer.
        quantizer: The quantizer of its VQVAE.
        request: What to sample.
        scales: As for `sample`.
        prepare: Returns further arguments of `sample` for a batch.
        engine: Samples in the place of `sample`; progress is then counted by batches.
    """
    run = functools.partial(sample, model, quantizer) if engine is None else engine.sample
    # A callback keeps the engine from replaying a graph, so there is none that nobody asked for.
    watched = engine is None or request.on_scale is not None
    count = len(model.config.sides) if scales is None else len(scales)
    total = len(request.labels)
    with counting(SAMPLING, total, shown=True) if request.progress else contextlib.nullcontext():
        for start in range(0, len(request.labels), request.batch_size):
            images = slice(start, start + request.batch_size)
            labels = torch.tensor(request.labels[images], device=model.device)

            share = len(labels) * request.share

            def on_scale(scale: int, f_hat: Tensor, each: float = share / count) -> object:
                sampled(each)
                return None if request.on_scale is None else request.on_scale(scale, f_hat)

            result = run(
                labels,
                request.generators(images),
                request.settings,
                processors=request.processors,
                scales=scales,
                on_scale=on_scale if watched else None,
                keep_logits=False,
                **(prepare(images) if prepare is not None else {}),
            )
            if not watched:
                sampled(share)
            yield result


def as_sequence(labels: Labels) -> Sequence[int | str]:
    """Return the labels as a sequence; one label may come alone, and arrays and tensors are taken."""
    if hasattr(labels, "tolist"):
        labels = labels.tolist()
    return [labels] if isinstance(labels, (int, str)) else labels


def sources_of(
    seed: int | Sequence[int], generator: Generators | None, count: int
) -> list[int] | list[torch.Generator]:
    """Return a seed or a generator per image; see this module.

    Raises:
        TypeError: `generator` is neither a torch.Generator nor a list of them, or seeds are no whole numbers.
        ValueError: seeds outside 0 .. 2^64 - 1, not one seed or generator per image, both given, or
            generators of another device.
    """
    seed = converted(seed, int | tuple[int, ...], "seed")
    if generator is None:
        return _seeds(seed, count)
    if seed != 0:
        raise ValueError(f"give one of seed and generator, got seed={seed!r} and a generator")
    if isinstance(generator, torch.Generator):
        seeds = torch.randint(_MOST_SEEDS, (count,), generator=generator, device=generator.device)
        return [int(each) for each in seeds]
    generators = list(generator)
    for each in generators:
        if not isinstance(each, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator or a list of them, got {each!r}")
        if each.device.type != "cpu":
            raise ValueError(
                f"generator must be on the CPU, where random numbers are always read, got {each.device}"
            )
    if len(generators) != count:
        raise ValueError(f"generator needs one per image ({count}), got {len(generators)}")
    return generators


def _seeds(seed: int | Sequence[int], count: int) -> list[int]:
    if isinstance(seed, int):
        converted(seed, Seed, "seed")
        converted(seed + max(count - 1, 0), Seed, "seed of the last image")
        return list(range(seed, seed + count))
    if len(seed) != count:
        raise ValueError(f"seed needs one int per image ({count}), got {len(seed)}")
    return list(converted(seed, tuple[Seed, ...], "seed"))
