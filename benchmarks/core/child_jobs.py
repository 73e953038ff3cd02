"""What fresh processes run: training steps and drawing pictures at a named shape. Arguments and results are JSON."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.core.phases import Phases
from benchmarks.core.shapes import Shape, tokenizer
from benchmarks.estimates.activations import Loss, a_picture, example
from benchmarks.suites.baselines import Eager
from benchmarks.suites.plain_pytorch import PlainModel
from mvar_models import MVARPipeline, VARPipeline
from mvar_models.networks.transformer import ScaleTransformer

WAYS = ("plain, scores kept", "plain", "ours", "ours, checkpointed")


def shape_of(depth: int, pixels: str, batch: int, dtype: str, **more: Any) -> Shape:
    """A Shape from JSON."""
    sides = more.pop("sides", None)
    return Shape(depth, pixels, batch, getattr(torch, dtype), sides=sides and tuple(sides), **more)


def nbytes(*modules: nn.Module) -> int:
    """Of parameters and buffers."""
    return sum(
        tensor.numel() * tensor.element_size()
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
    )


def cache_bytes(shape: Shape, guided: bool) -> int:
    """What VAR's cache holds at the end: keys and values of every token and block, twice with guidance."""
    config = shape.config("var")
    element = torch.empty((), dtype=shape.dtype).element_size()
    return 2 * config.depth * shape.batch * (2 if guided else 1) * config.length * config.width * element


def train(arch: str, way: str, device: str, **shape: Any) -> dict[str, Any]:
    """Two AdamW steps; the second has the optimizer's state from its start. `way` is one of WAYS."""
    place, wanted = torch.device(device), shape_of(**shape)
    phases = Phases(place)
    model = wanted.build(arch, place)
    loss = loss_of(model, way, wanted.dtype)
    inputs = example(model, wanted.batch, place)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    phases.end("weights")
    for name in ("first step", "step"):
        optimizer.zero_grad()
        with torch.autocast(place.type, wanted.dtype, enabled=wanted.dtype != torch.float32):
            value = loss(*inputs)
        value.backward()
        optimizer.step()
        phases.end(name)
    return {**phases.report(), "weights": nbytes(model)}


def draw(
    arch: str, device: str, guidance_scale: float, top_k: int, top_p: float, channels: int = 160, **shape: Any
) -> dict[str, Any]:
    """A batch of pictures through the pipeline, with weights in the shape's type: codes, then the decoder."""
    place, wanted = torch.device(device), shape_of(**shape)
    phases = Phases(place)
    model, vqvae = wanted.build(arch, place).eval(), tokenizer(wanted, channels)
    pipeline = (VARPipeline if arch == "var" else MVARPipeline)(
        model.to(wanted.dtype), vqvae.to(place, wanted.dtype)
    )
    phases.end("weights")

    def after_scale(scale: int, f_hat: Tensor) -> None:
        if scale >= len(model.config.sides) - 2:
            phases.end("last scale" if scale == len(model.config.sides) - 1 else "earlier scales")

    options = {"guidance_scale": guidance_scale, "top_k": top_k, "top_p": top_p}
    labels = [index % model.config.num_classes for index in range(wanted.batch)]
    pipeline(
        labels, output_type="np", on_scale=after_scale, batch_invariant=False, **options
    )  # together: what is weighed is a batch
    phases.end("decoder")
    return {**phases.report(), "weights": nbytes(model), "vqvae": nbytes(vqvae)}


def count(arch: str, way: str, device: str, **shape: Any) -> dict[str, Any]:
    """Bytes that one more picture adds to what autograd holds, on real tensors."""
    model = shape_of(**shape).build(arch, torch.device(device))
    return {
        "bytes": a_picture(model, loss_of(model, way, shape_of(**shape).dtype), shape_of(**shape).dtype).bytes
    }


def loss_of(model: ScaleTransformer, way: str, dtype: torch.dtype) -> Loss:
    """`way` is one of WAYS."""
    model.gradient_checkpointing = way == "ours, checkpointed"
    if way == "plain":
        return PlainModel(model, dtype).loss
    return PlainModel(model, dtype, Eager()).loss if way == "plain, scores kept" else model.loss


JOBS = {"train": train, "draw": draw, "count": count}
