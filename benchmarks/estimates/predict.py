"""Predicted times on a GPU that is not here, from counted bytes and counted instructions: `python -m benchmarks.estimates.predict`. Needs triton, no GPU.

    bytes          each tensor moved once (cases.py), at the GPU's nominal bandwidth
    issue slots    instructions of the compiled kernels (main loop times chunks, the rest once a program), warps, and one instruction a cycle
                   for each of four schedulers a multiprocessor

The larger of the two bounds a kernel from below; tensor cores and latencies are left out. These are predictions, not measurements.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import click
import torch

from benchmarks.core.cases import Case, grid, pyramid
from mvar_kernels import aot
from mvar_kernels.backends.triton.schedule import tables
from mvar_kernels.backends.triton.tile_choice import tile_row


@dataclass(frozen=True)
class GPU:
    """Nominal figures from the maker's data sheet: bytes a second, multiprocessors, cycles a second."""

    name: str
    target: str
    bandwidth: float
    multiprocessors: int
    clock: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("H200", "cuda:90", 4.8e12, 132, 1.98e9),
        GPU("H100", "cuda:90", 3.35e12, 132, 1.98e9),
        GPU("A100", "cuda:80", 2.04e12, 108, 1.41e9),
    )
}
_SCHEDULERS = 4


@dataclass(frozen=True)
class Prediction:
    """Seconds by bytes and by issue slots; the kernel's tiles and chunks a head."""

    kernel: str
    tiles: int
    chunks: int
    bytes_seconds: float
    issue_seconds: float

    @property
    def seconds(self) -> float:
        return max(self.bytes_seconds, self.issue_seconds)


def predict(case: Case, gpu: GPU) -> Iterator[Prediction]:
    """Forward, and for direction "both" also dq, and dk and dv."""
    element = torch.empty((), dtype=case.dtype).element_size()
    row = tile_row(aot.architecture_name(gpu.target), case.head_dim, element, case.cosine)
    tensor = case.batch * case.heads * case.tokens * case.head_dim * element
    vector = case.batch * case.heads * case.tokens * 4
    # Tensors and float32 vectors that each kernel reads and writes: dq takes q, k, v, o, dO, lse and gives dq, delta.
    moved = {"forward": (4, 1), "dq": (6, 2), "dkdv": (6, 2)}
    norms = Prediction("norms", 0, 0, (2 * tensor + 2 * vector) / gpu.bandwidth, 0.0)
    if case.cosine:
        yield norms
    for name, function, config, constants in aot.kernels(row):
        if name != "forward" and case.direction == "forward":
            return
        if name == "dq" and case.cosine:
            yield norms  # made again rather than kept for the backward
        by = "key" if name == "dkdv" else "query"
        t = tables(
            case.neighborhood,
            by,
            config.height,
            config.width,
            config.chunk,
            torch.bfloat16,
            torch.device("cpu"),
        )
        kernel = aot.compile_kernel(
            function, gpu.target, "bf16" if element == 2 else "fp32", config, constants, case.head_dim
        )
        figures = aot.report(kernel, gpu.target)
        loop = max(figures["loops"])
        a_head = t.num_tiles * (figures["instructions"] - loop) + t.num_chunks * loop
        slots = gpu.multiprocessors * _SCHEDULERS * gpu.clock
        tensors, vectors = moved[name]
        yield Prediction(
            name, t.num_tiles, t.num_chunks, (tensors * tensor + vectors * vector) / gpu.bandwidth,
            case.batch * case.heads * config.num_warps * a_head / slots,
        )  # fmt: skip


@click.command(context_settings={"show_default": True})
@click.option("--gpu", type=click.Choice(list(GPUS)), default="H200")
def main(gpu: str) -> None:
    """Print predicted times of the cases that design targets are stated for."""
    shape = {"heads": 16, "dtype": torch.bfloat16}
    cases = (
        pyramid("256px", batch=64, **shape), pyramid("256px", batch=64, cosine=True, **shape), pyramid("512px", batch=16, **shape),
        pyramid("1024px", batch=4, **shape), grid(64, batch=4, **shape),
    )  # fmt: skip
    click.echo(
        f"PREDICTED for {gpu}, not measured: bytes at nominal bandwidth, instructions at one a cycle and scheduler"
    )
    click.echo(
        "| case | kernel | tiles | chunks | bytes, us | issue slots, us | floor of bytes once, us |\n|---|---|---|---|---|---|---|"
    )
    for case in cases:
        title = f"{case.name} b{case.batch}{' cosine' if case.cosine else ''}"
        total = 0.0
        for p in predict(case.both(), GPUS[gpu]):
            total += p.seconds
            click.echo(
                f"| {title} | {p.kernel} | {p.tiles} | {p.chunks} | {p.bytes_seconds * 1e6:.0f} | {p.issue_seconds * 1e6:.0f} | |"
            )
            if p.kernel == "forward":
                click.echo(_sum(f"{title} forward", total, case, GPUS[gpu]))
        click.echo(_sum(f"{title} forward and backward", total, case.both(), GPUS[gpu]))


def _sum(title: str, seconds: float, case: Case, gpu: GPU) -> str:
    floor = case.least_bytes / gpu.bandwidth
    return (
        f"| **{title}** | all | | | **{seconds * 1e6:.0f}** | | {floor * 1e6:.0f}: x {seconds / floor:.2f} |"
    )


if __name__ == "__main__":
    main()
