"""Search the tile table on this machine's GPU and rewrite it: `python -m benchmarks.tune` (or `make tune`).

Candidates of every kernel are timed through the public launch on the 256 px pyramid and on one 64 x 64 grid, the others held at their current row:
from the current one in steps that change one number, to where no step is faster. One that differs from float64 is none. The fastest becomes a row
of this very architecture, which goes before its family's; what was found stands in tune.csv and tile_table.py after each kernel.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.core import machine
from benchmarks.core.cases import Case, grid, pyramid
from benchmarks.core.measure import measure
from benchmarks.suites.attention import GATE, largest_error, oracle
from mvar_kernels.backends.triton import tile_table
from mvar_kernels.backends.triton.tile_choice import architecture_of, tile_row
from mvar_kernels.backends.triton.tile_config import Config, Row
from mvar_models.files import write_text

KERNELS = ("forward", "dq", "dkdv")
_TILES = ((8, 8), (8, 16), (4, 8))
_CHUNKS = (32, 64, 128)
_WARPS = (4, 8)
_STAGES = (1, 2, 3)
_DTYPES = {2: torch.bfloat16, 4: torch.float32}
# A row is replaced only by what is clearly faster; the rest is noise.
_WORTH = 0.98


def neighbours(config: Config) -> list[Config]:
    """Configurations that differ in the tile, the chunk, the warps or the stages alone."""
    changed = [{"height": height, "width": width} for height, width in _TILES]
    changed += (
        [{"chunk": chunk} for chunk in _CHUNKS]
        + [{"num_warps": warps} for warps in _WARPS]
        + [{"num_stages": stages} for stages in _STAGES]
    )
    return [other for other in (config._replace(**change) for change in changed) if other != config]


def cases(row: Row) -> list[Case]:
    shape = {"heads": 16, "head_dim": row.max_dim, "dtype": _DTYPES[row.bytes], "cosine": row.cosine}
    batch = max(1, 64 * 64 // row.max_dim * 2 // row.bytes)
    return [pyramid("256px", batch=batch, **shape), grid(64, batch=max(1, batch // 16), **shape)]


@contextmanager
def trying(row: Row) -> Iterator[None]:
    """Launches within take this row."""
    before = tile_table.ROWS
    tile_table.ROWS = (row, *(old for old in before if old[:4] != row[:4]))
    tile_row.cache_clear()
    try:
        yield
    finally:
        tile_table.ROWS = before
        tile_row.cache_clear()


class Stopwatch:
    """Seconds of a row on a device; inputs and float64 truth are made once a case."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._known: dict[Case, tuple[Any, list[torch.Tensor]]] = {}

    def __call__(self, row: Row, kernel: str) -> float:
        """Geometric mean over the cases of the pass that the kernel belongs to; infinite where it cannot run or is wrong."""
        from mvar_kernels.backends.triton import launch

        total = 0.0
        with trying(row):
            for case in cases(row):
                (query, key, value, factor, grad), right = self._case(case)
                scale = 1.0 if case.cosine else case.head_dim**-0.5
                arguments = query, key, value, factor, case.neighborhood, scale

                def backward(out: torch.Tensor, lse: torch.Tensor) -> Any:
                    return launch.backward(grad, None, *arguments[:3], out, lse, *arguments[3:])  # noqa: B023  (called in this iteration)

                try:
                    out, lse = launch.forward(*arguments)
                    found = [out, *backward(out, lse)[:3]] if kernel != "forward" else [out]
                    if not largest_error(found, right[: len(found)]) <= GATE[case.dtype]:
                        return math.inf
                    run = (
                        partial(launch.forward, *arguments)
                        if kernel == "forward"
                        else partial(backward, out, lse)
                    )
                    total += math.log(
                        measure({"": run}, self.device, seconds=0.02, least_calls=10)[""].median
                    )
                except Exception:  # out of shared memory or registers: no candidate here
                    return math.inf
        return math.exp(total / len(cases(row)))

    def _case(self, case: Case) -> tuple[Any, list[torch.Tensor]]:
        if case not in self._known:
            inputs = case.inputs(self.device)
            self._known[case] = inputs, oracle(case.both(), *inputs)
        return self._known[case]


def best(
    row: Row,
    kernel: str,
    seconds: Callable[[Row, str], float],
    trials: list[dict[str, Any]],
    out_of_time: Callable[[], bool],
) -> Row:
    """The row with the kernel's fastest configuration among those tried; what is not clearly faster stays."""
    current = fastest = getattr(row, kernel)
    times = {current: seconds(row, kernel)}
    while True:
        for config in neighbours(fastest):
            if config not in times and not out_of_time():
                times[config] = seconds(row._replace(**{kernel: config}), kernel)
        step = min(times, key=times.__getitem__)
        if step == fastest:
            break
        fastest = step
    if times[fastest] < _WORTH * times[current]:
        row = row._replace(**{kernel: fastest})
    trials += [
        {"kernel": kernel, "bytes": row.bytes, "head_dim": row.max_dim, "cosine": row.cosine, "config": str(tuple(config)),
         "ms": cost * 1e3, "chosen": config == getattr(row, kernel)}
        for config, cost in times.items()
    ]  # fmt: skip
    return row


def render(rows: tuple[Row, ...]) -> str:
    """The text of tile_table.py with these rows; what stands above them is kept."""
    text = Path(tile_table.__file__).read_text(encoding="utf-8")
    head = text[: text.index("ROWS = (")]
    lines = [
        f'    _row("{row.family}", {row.bytes}, {row.max_dim}, {row.cosine},'
        f" {tuple(row.forward)}, {tuple(row.dq)}, {tuple(row.dkdv)},\n"
        f'         why="{row.why}"),\n'
        for row in rows
    ]
    return head + "ROWS = (\n" + "".join(lines) + ")\n"


@click.command(context_settings={"show_default": True})
@click.option("--head-dim", "dims", type=click.Choice(["64", "128", "256"]), multiple=True, default=["64"])
@click.option("--bytes", "sizes", type=click.Choice(["2", "4"]), multiple=True, default=["2"])
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default="bench_out")
@click.option("--minutes", default=4.0, help="Try nothing new after this.")
def main(dims: tuple[str, ...], sizes: tuple[str, ...], out: Path, minutes: float) -> None:
    """Find the fastest rows for this GPU; write tile_table.py here and, with every trial, into OUT."""
    if not torch.cuda.is_available():
        raise click.ClickException("no GPU here: there is nothing to measure")
    device = torch.device("cuda")
    architecture, facts, stopwatch = architecture_of(device), machine.describe(device), Stopwatch(device)
    trials: list[dict[str, Any]] = []
    rows = list(tile_table.ROWS)
    end = time.monotonic() + 60 * minutes
    for size, dim, cosine, kernel in itertools.product(
        map(int, sizes), map(int, dims), (False, True), KERNELS
    ):
        if time.monotonic() > end:
            click.echo(f"out of time before {kernel} of {size} bytes, head dimension {dim}, cosine {cosine}")
            break
        start = tile_row(architecture, dim, size, cosine)._replace(family=architecture)
        found = best(start, kernel, stopwatch, trials, lambda: time.monotonic() > end)
        why = f"fastest of those near it on {facts['device']}, triton {facts['triton']}, at {facts['commit']}"
        rows = [row for row in rows if row[:4] != found[:4]] + [found._replace(why=why)]
        tile_table.ROWS = tuple(rows)
        tile_row.cache_clear()
        click.echo(f"{found[:4]}: {kernel} {tuple(getattr(found, kernel))}")
        text = io.StringIO()
        writer = csv.DictWriter(text, list(trials[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(trials)
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "tune.csv", text.getvalue())
        write_text(out / "tile_table.py", render(tuple(rows)))
    write_text(Path(tile_table.__file__), render(tuple(rows)))


if __name__ == "__main__":
    main()
