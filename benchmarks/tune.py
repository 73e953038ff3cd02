"""Search the tile table on this machine's GPU and rewrite it: `python -m benchmarks.tune` (or `make tune`).

Every candidate of every kernel is timed through the public launch on the 256 px pyramid and on one 64 x 64 grid, the others held at their current
row. The fastest becomes a row of this very architecture, which goes before its family's; all trials stand in tune.csv.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks import machine
from benchmarks.cases import Case, grid, pyramid
from benchmarks.measure import measure
from mvar_kernels.backends.triton import tile_rows
from mvar_kernels.backends.triton.tiles import Config, Row, architecture_of, tile_row
from mvar_models.checkpoints import write_text

KERNELS = ("forward", "dq", "dkdv")
_TILES = ((8, 8), (8, 16), (4, 8))
_CHUNKS = (32, 64, 128)
_WARPS = (4, 8)
_STAGES = (1, 2, 3)
_DTYPES = {2: torch.bfloat16, 4: torch.float32}
# A row is replaced only by what is clearly faster; the rest is noise.
_WORTH = 0.98


def candidates() -> list[Config]:
    return [Config(*tile, chunk, warps, stages) for tile, chunk, warps, stages in itertools.product(_TILES, _CHUNKS, _WARPS, _STAGES)]


def cases(row: Row) -> list[Case]:
    shape = {"heads": 16, "head_dim": row.max_dim, "dtype": _DTYPES[row.bytes], "cosine": row.cosine}
    batch = max(1, 64 * 64 // row.max_dim * 2 // row.bytes)
    return [pyramid("256px", batch=batch, **shape), grid(64, batch=max(1, batch // 16), **shape)]


@contextmanager
def trying(row: Row) -> Iterator[None]:
    """Launches within take this row."""
    before = tile_rows.ROWS
    tile_rows.ROWS = (row, *(old for old in before if old[:4] != row[:4]))
    tile_row.cache_clear()
    try:
        yield
    finally:
        tile_rows.ROWS = before
        tile_row.cache_clear()


def seconds_of(row: Row, kernel: str, device: torch.device) -> float:
    """Geometric mean over the cases of the pass that the kernel belongs to; infinite where it cannot run."""
    from mvar_kernels.backends.triton import launch

    total = 0.0
    with trying(row):
        for case in cases(row):
            query, key, value, factor, grad = case.inputs(device)
            scale = 1.0 if case.cosine else case.head_dim**-0.5
            arguments = query, key, value, factor, case.neighborhood, scale
            try:
                out, lse = launch.forward(*arguments)

                def run() -> Any:
                    if kernel == "forward":
                        return launch.forward(*arguments)  # noqa: B023
                    return launch.backward(grad, None, *arguments[:3], out, lse, *arguments[3:])  # noqa: B023

                total += math.log(measure({"": run}, device, seconds=0.02, least_calls=10)[""].median)
            except Exception:  # out of shared memory or registers: no candidate here
                return math.inf
    return math.exp(total / len(cases(row)))


def best(row: Row, seconds: Callable[[Row, str], float], trials: list[dict[str, Any]]) -> Row:
    """The row with each kernel's fastest configuration; what is not clearly faster stays."""
    for kernel in KERNELS:
        current = getattr(row, kernel)
        times = {current: seconds(row, kernel)}
        for config in candidates():
            if config not in times:
                times[config] = seconds(row._replace(**{kernel: config}), kernel)
        fastest = min(times, key=times.__getitem__)
        if times[fastest] < _WORTH * times[current]:
            row = row._replace(**{kernel: fastest})
        trials += [
            {"kernel": kernel, "bytes": row.bytes, "head_dim": row.max_dim, "cosine": row.cosine, "config": str(tuple(config)),
             "ms": cost * 1e3, "chosen": config == getattr(row, kernel)}
            for config, cost in times.items()
        ]  # fmt: skip
    return row


def render(rows: tuple[Row, ...]) -> str:
    """The text of tile_rows.py with these rows; what stands above them is kept."""
    text = Path(tile_rows.__file__).read_text(encoding="utf-8")
    head = text[: text.index("ROWS = (")]
    lines = [
        f'    _row(\n        "{row.family}", {row.bytes}, {row.max_dim}, {row.cosine}, {tuple(row.forward)}, {tuple(row.dq)}, {tuple(row.dkdv)},\n'
        f'        why="{row.why}",\n    ),\n'
        for row in rows
    ]
    return head + "ROWS = (\n" + "".join(lines) + ")\n"


@click.command(context_settings={"show_default": True})
@click.option("--head-dim", "dims", type=click.Choice(["64", "128", "256"]), multiple=True, default=["64"])
@click.option("--bytes", "sizes", type=click.Choice(["2", "4"]), multiple=True, default=["2"])
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default="bench_out")
@click.option("--minutes", default=4.0, help="Stop beginning new rows after this.")
def main(dims: tuple[str, ...], sizes: tuple[str, ...], out: Path, minutes: float) -> None:
    """Find the fastest rows for this GPU; write tile_rows.py here and, with every trial, into OUT."""
    if not torch.cuda.is_available():
        raise click.ClickException("no GPU here: there is nothing to measure")
    device = torch.device("cuda")
    architecture, facts = architecture_of(device), machine.describe(device)
    trials: list[dict[str, Any]] = []
    rows = list(tile_rows.ROWS)
    begun = time.monotonic()
    for size, dim, cosine in itertools.product(map(int, sizes), map(int, dims), (False, True)):
        if time.monotonic() - begun > 60 * minutes:
            click.echo(f"out of time before {size} bytes, head dimension {dim}, cosine {cosine}")
            break
        start = tile_row(architecture, dim, size, cosine)._replace(family=architecture)
        why = f"fastest of {len(candidates())} on {facts['device']}, triton {facts['triton']}, at {facts['commit']}"
        found = best(start, lambda row, kernel: seconds_of(row, kernel, device), trials)._replace(why=why)
        rows = [row for row in rows if row[:4] != found[:4]] + [found]
        click.echo(f"{found[:4]}: forward {tuple(found.forward)}, dq {tuple(found.dq)}, dkdv {tuple(found.dkdv)}")
        text = io.StringIO()
        writer = csv.DictWriter(text, list(trials[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(trials)
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "tune.csv", text.getvalue())
        write_text(out / "tile_rows.py", render(tuple(rows)))
    write_text(Path(tile_rows.__file__), render(tuple(rows)))


if __name__ == "__main__":
    main()
