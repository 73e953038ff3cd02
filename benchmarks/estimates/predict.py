"""Predict times on a GPU that is not present: `python -m benchmarks.estimates.predict`. Needs triton, no GPU.

The largest of four lower bounds is taken per kernel; latencies, L2 and imbalance are left out.

    bytes         each tensor moved once (`Case.least_bytes`), at the GPU's nominal bandwidth
    issue slots   instructions of the compiled kernel (main loop times chunks, the rest once per program)
                  times warps, at one instruction per cycle for each of a multiprocessor's four schedulers
    shared        executed wavefronts, one per cycle and multiprocessor, and wgmma's operands at 128 bytes
    tensor cores  executed operations, at the nominal rate

The last two exist where the kernels were executed on the emulated GPU (`executed.py`). These are estimates,
not measurements.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click
import torch

from benchmarks import aot
from benchmarks.core.cases import Case, grid, pyramid
from benchmarks.core.report import header, row
from benchmarks.estimates.executed import executed, source
from mvar_kernels.backends.triton.schedule import tables
from mvar_kernels.backends.triton.tile_table import tile_row


@dataclass(frozen=True)
class GPU:
    """Nominal figures of the data sheet.

    Attributes:
        name: What `--gpu` takes.
        target: What the kernels are compiled for.
        bandwidth: Bytes per second.
        multiprocessors: Their number.
        clock: Cycles per second.
        tensor: Dense bfloat16 FLOP per second.
    """

    name: str
    target: str
    bandwidth: float
    multiprocessors: int
    clock: float
    tensor: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("H200", "cuda:90", 4.8e12, 132, 1.98e9, 989e12),
        GPU("H100", "cuda:90", 3.35e12, 132, 1.98e9, 989e12),
        GPU("A100", "cuda:80", 2.04e12, 108, 1.41e9, 312e12),
    )
}
_SCHEDULERS = 4
_WAVEFRONT_BYTES = 128


@dataclass(frozen=True)
class Prediction:
    """One kernel's lower bounds in seconds, and its tiles and chunks per head.

    Bounds of shared memory and of tensor cores are zero where nothing was executed.
    """

    kernel: str
    tiles: int
    chunks: int
    bytes_seconds: float
    issue_seconds: float
    shared_seconds: float = 0.0
    tensor_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        return max(self.bytes_seconds, self.issue_seconds, self.shared_seconds, self.tensor_seconds)


def predict(case: Case, gpu: GPU) -> Iterator[Prediction]:
    """Yield a prediction per kernel: forward, and for direction "both" also dq and dkdv."""
    element = torch.empty((), dtype=case.dtype).element_size()
    architecture = aot.architecture_name(gpu.target)
    tiles, counts = tile_row(architecture, case.head_dim, element, case.cosine), executed(case, architecture)
    tensor = case.batch * case.heads * case.tokens * case.head_dim * element
    vector = case.batch * case.heads * case.tokens * 4
    # (tensors, float32 vectors) that each kernel moves. Forward: q, k, v, out; lse.
    # dq: q, k, v, out, dout, dq; lse, delta. dkdv: q, k, v, dout, dk, dv; lse, delta.
    moved = {"forward": (4, 1), "dq": (6, 2), "dkdv": (6, 2)}
    norms = Prediction("norms", 0, 0, (2 * tensor + 2 * vector) / gpu.bandwidth, 0.0)
    if case.cosine:
        yield norms
    for name, function, config, constants in aot.kernels(tiles):
        if name != "forward" and case.direction == "forward":
            return
        if name == "dq" and case.cosine:
            yield norms  # recomputed, not kept for backward
        fixed = "key" if name == "dkdv" else "query"
        cpu = torch.device("cpu")
        schedule = tables(
            case.neighborhood, fixed, config.height, config.width, config.chunk, torch.bfloat16, cpu
        )
        dtype = "bf16" if element == 2 else "fp32"
        kernel = aot.compile_kernel(function, gpu.target, dtype, config, constants, case.head_dim)
        figures = aot.report(kernel, gpu.target)
        loop = max(figures["loops"])
        per_head = schedule.num_tiles * (figures["instructions"] - loop) + schedule.num_chunks * loop
        slots = gpu.multiprocessors * _SCHEDULERS * gpu.clock
        tensors, vectors = moved[name]
        count, heads = counts.get(name), case.batch * case.heads
        wavefronts = count["wavefronts"] + count["operand_bytes"] / _WAVEFRONT_BYTES if count else 0.0
        yield Prediction(
            kernel=name,
            tiles=schedule.num_tiles,
            chunks=schedule.num_chunks,
            bytes_seconds=(tensors * tensor + vectors * vector) / gpu.bandwidth,
            issue_seconds=heads * config.num_warps * per_head / slots,
            shared_seconds=heads * wavefronts / (gpu.multiprocessors * gpu.clock),
            tensor_seconds=heads * count["tensor_flops"] / gpu.tensor if count else 0.0,
        )


@click.command(context_settings={"show_default": True})
@click.option("--gpu", type=click.Choice(list(GPUS)), default="H200")
def main(gpu: str) -> None:
    """Print predicted times of the cases that the project's targets are stated for."""
    shape: dict[str, Any] = {"heads": 16, "dtype": torch.bfloat16}
    cases = (
        pyramid("256px", batch=64, **shape),
        pyramid("256px", batch=64, cosine=True, **shape),
        pyramid("512px", batch=16, **shape),
        pyramid("1024px", batch=4, **shape),
        grid(64, batch=4, **shape),
    )
    click.echo(
        f"PREDICTED for {gpu}, not measured: bytes at nominal bandwidth, "
        "one instruction per cycle and scheduler"
    )
    click.echo(source(aot.architecture_name(GPUS[gpu].target)))
    titles = ["case", "kernel", "tiles", "chunks", "bytes, us", "issue slots, us", "shared, us"]
    titles += ["tensor cores, us", "floor of bytes once, us"]
    for line in header(titles):
        click.echo(line)
    for case in cases:
        title = f"{case.name} b{case.batch}{' cosine' if case.cosine else ''}"
        total = 0.0
        for p in predict(case.both(), GPUS[gpu]):
            total += p.seconds
            times = [f"{p.bytes_seconds * 1e6:.0f}", f"{p.issue_seconds * 1e6:.0f}"]
            # Norms and cases that were not executed have no such bounds.
            times += [f"{t * 1e6:.0f}" if t else "-" for t in (p.shared_seconds, p.tensor_seconds)]
            click.echo(row([title, p.kernel, str(p.tiles), str(p.chunks), *times, ""]))
            if p.kernel == "forward":
                click.echo(_sum(f"{title} forward", total, case, GPUS[gpu]))
        click.echo(_sum(f"{title} forward and backward", total, case.both(), GPUS[gpu]))


def _sum(title: str, seconds: float, case: Case, gpu: GPU) -> str:
    floor = case.least_bytes / gpu.bandwidth
    over = f"{floor * 1e6:.0f}: x {seconds / floor:.2f}"
    return row([f"**{title}**", "all", "", "", f"**{seconds * 1e6:.0f}**", "", "", "", over])


if __name__ == "__main__":
    main()
