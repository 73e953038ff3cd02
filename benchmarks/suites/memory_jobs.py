"""What the memory suite runs in fresh processes: training steps and sampling at a named shape.

`python -m benchmarks.suites.memory_jobs '{"job": ..., ...}'` runs one job and prints a JSON object;
`run_fresh` starts that command and reads the answer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.core.activations import example, held_per_image
from benchmarks.core.phases import Phases
from benchmarks.core.shapes import Shape, tokenizer
from benchmarks.peers.plain_pytorch import loss_of
from mvar_models.registry import architecture


def run_fresh(job: str, **arguments: Any) -> dict[str, Any]:
    """Run a job in a fresh process.

    Raises:
        RuntimeError: it failed; the message has the last line of its standard error.
    """
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "benchmarks.suites.memory_jobs", json.dumps({"job": job, **arguments})]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        errors = done.stderr.strip().splitlines()
        raise RuntimeError(f"{job} failed: {errors[-1] if errors else f'exit status {done.returncode}'}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def nbytes(*modules: nn.Module) -> int:
    """Return the bytes of all parameters and buffers."""
    return sum(
        tensor.numel() * tensor.element_size()
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
    )


def cache_bytes(shape: Shape, guided: bool, released: bool = False) -> int:
    """Return the bytes of VAR's cache, twice with guidance.

    Ours leaves out the last scale, except for a workspace that all blocks share; the released programs' has
    the keys and values of every token and block.
    """
    config = shape.config("var")
    last = 0 if released else config.sides[-1] ** 2
    tokens = config.depth * (config.length - last) + last
    element = torch.empty((), dtype=shape.dtype).element_size()
    return 2 * tokens * shape.batch * (2 if guided else 1) * config.width * element


def train(arch: str, way: str, device: str, **shape_json: Any) -> dict[str, Any]:
    """Run two AdamW steps; the second has the optimizer's state from its start. `way` is one of WAYS."""
    where, shape = torch.device(device), Shape.from_json(**shape_json)
    phases = Phases(where)
    model = shape.build(arch, where)
    loss = loss_of(model, way, shape.dtype)
    inputs = example(model, shape.batch, where)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    phases.end("weights")
    for name in ("first step", "step"):
        optimizer.zero_grad()
        with torch.autocast(where.type, shape.dtype, enabled=shape.dtype != torch.float32):
            value = loss(*inputs)
        value.backward()
        optimizer.step()
        phases.end(name)
    return {**phases.report(), "weights": nbytes(model)}


def draw(
    arch: str,
    device: str,
    guidance_scale: float,
    top_k: int,
    top_p: float,
    channels: int = 160,
    **shape_json: Any,
) -> dict[str, Any]:
    """Sample a batch of images through the pipeline, with weights in the shape's type."""
    where, shape = torch.device(device), Shape.from_json(**shape_json)
    phases = Phases(where)
    model, vqvae = shape.build(arch, where).eval(), tokenizer(shape, channels)
    pipeline = architecture(arch).pipeline_class()(model.to(shape.dtype), vqvae.to(where, shape.dtype))
    phases.end("weights")
    last = len(model.config.sides) - 1

    def after_scale(scale: int, f_hat: Tensor) -> None:
        if scale >= last - 1:
            phases.end("last scale" if scale == last else "earlier scales")

    labels = [index % model.config.num_classes for index in range(shape.batch)]
    pipeline(
        labels,
        output_type="np",
        on_scale=after_scale,
        # Compute the batch as one: its memory is what is measured.
        batch_invariant=False,
        guidance_scale=guidance_scale,
        top_k=top_k,
        top_p=top_p,
    )
    phases.end("decoder")
    return {**phases.report(), "weights": nbytes(model), "vqvae": nbytes(vqvae)}


def count(arch: str, way: str, device: str, **shape_json: Any) -> dict[str, Any]:
    """Count the bytes that one more image adds to what autograd holds, on real tensors."""
    shape = Shape.from_json(**shape_json)
    model = shape.build(arch, torch.device(device))
    return {"bytes": held_per_image(model, loss_of(model, way, shape.dtype), shape.dtype).bytes}


JOBS = {"train": train, "draw": draw, "count": count}


def main() -> None:
    """Run the job of the command line's JSON object and print the answer."""
    arguments = json.loads(sys.argv[1])
    print(json.dumps(JOBS[arguments.pop("job")](**arguments)))


if __name__ == "__main__":
    main()
