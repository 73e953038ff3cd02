"""Search the tile table on this machine's GPU and rewrite it: `python -m benchmarks.tune` (or `make tune`).

A greedy search per kernel, the other kernels held at their current configuration: from the current one,
change one number at a time until no change is faster. Candidates are timed through the public launch, on
the 256 px pyramid and on one 64 x 64 grid; one that differs from float64 is discarded. The fastest becomes
a row for this very architecture, which takes precedence over its family's. tune.csv and tile_table.py are
written after each kernel.
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
from benchmarks.peers.gate import GATE, largest_error, oracle
from mvar_kernels.backends.triton import tile_table
from mvar_kernels.backends.triton.tile_config import Config, Row
from mvar_kernels.backends.triton.tile_table import architecture_of, tile_row
from mvar_models.files import write_text

KERNELS = ("forward", "dq", "dkdv")
_TILES = ((8, 8), (8, 16), (4, 8))
_CHUNKS = (32, 64, 128)
_WARPS = (4, 8)
_STAGES = (1, 2, 3)
_DTYPES = {2: torch.bfloat16, 4: torch.float32}
# A configuration is replaced only by one that takes at most this share of its time; less is noise.
_WORTH = 0.98


def neighbours(config: Config) -> list[Config]:
    """Return the configurations that differ in only one of tile, chunk, warps and stages."""
    changes = [{"height": height, "width": width} for height, width in _TILES]
    changes += [{"chunk": chunk} for chunk in _CHUNKS]
    changes += [{"num_warps": warps} for warps in _WARPS]
    changes += [{"num_stages": stages} for stages in _STAGES]
    return [other for other in (config._replace(**change) for change in changes) if other != config]


def cases(row: Row) -> list[Case]:
    """Return the cases that a row's kernels are timed on, about equal in bytes for all head dimensions."""
    shape: dict[str, Any] = {
        "heads": 16,
        "head_dim": row.max_dim,
        "dtype": _DTYPES[row.bytes],
        "cosine": row.cosine,
    }
    batch = max(1, 64 * 64 // row.max_dim * 2 // row.bytes)
    return [pyramid("256px", batch=batch, **shape), grid(64, batch=max(1, batch // 16), **shape)]


@contextmanager
def trying(row: Row) -> Iterator[None]:
    """Make launches inside the block use this row."""
    before = tile_table.ROWS
    tile_table.ROWS = (row, *(old for old in before if old[:4] != row[:4]))
    tile_row.cache_clear()
    try:
        yield
    finally:
        tile_table.ROWS = before
        tile_row.cache_clear()


class Stopwatch:
    """Time a row on a device; inputs and float64 results are computed once per case."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cases: dict[Case, tuple[Any, list[torch.Tensor]]] = {}

    def __call__(self, row: Row, kernel: str) -> float:
        """Return the geometric mean in seconds of the pass that the kernel belongs to, over the row's cases.

        Infinite where the row cannot run or is wrong.
        """
        with trying(row):
            times = [self._time(case, kernel) for case in cases(row)]
        return math.exp(sum(map(math.log, times)) / len(times)) if math.inf not in times else math.inf

    def _time(self, case: Case, kernel: str) -> float:
        from mvar_kernels.backends.triton import launch

        (query, key, value, logit_scale, grad), expected = self._inputs(case)
        scale = 1.0 if case.cosine else case.head_dim**-0.5
        arguments = query, key, value, logit_scale, case.neighborhood, scale

        def backward(out: torch.Tensor, lse: torch.Tensor) -> Any:
            return launch.backward(grad, None, *arguments[:3], out, lse, *arguments[3:])

        try:
            out, lse = launch.forward(*arguments)
            actual = [out] if kernel == "forward" else [out, *backward(out, lse)[:3]]
            # `not <=` rather than `>`: NaN must not pass.
            if not largest_error(actual, expected[: len(actual)]) <= GATE[case.dtype]:
                return math.inf
            run = partial(launch.forward, *arguments) if kernel == "forward" else partial(backward, out, lse)
            return measure({"": run}, self.device, seconds=0.02, least_calls=10)[""].median
        except Exception:  # typically out of shared memory or registers: not a candidate
            return math.inf

    def _inputs(self, case: Case) -> tuple[Any, list[torch.Tensor]]:
        if case not in self._cases:
            inputs = case.inputs(self.device)
            self._cases[case] = inputs, oracle(case.both(), *inputs)
        return self._cases[case]


def best(
    row: Row,
    kernel: str,
    seconds: Callable[[Row, str], float],
    trials: list[dict[str, Any]],
    out_of_time: Callable[[], bool],
) -> Row:
    """Return the row with one kernel's fastest configuration, unchanged if none is clearly faster.

    Args:
        row: Where the search begins.
        kernel: A name of `KERNELS`.
        seconds: Times a kernel of a row.
        trials: Gets a record per configuration tried.
        out_of_time: Ends the search when true.
    """
    current = fastest = getattr(row, kernel)
    times = {current: seconds(row, kernel)}
    while True:
        for config in neighbours(fastest):
            if config not in times and not out_of_time():
                times[config] = seconds(row._replace(**{kernel: config}), kernel)
        candidate = min(times, key=times.__getitem__)
        if candidate == fastest:
            break
        fastest = candidate
    if times[fastest] < _WORTH * times[current]:
        row = row._replace(**{kernel: fastest})
    trials += [
        {
            "kernel": kernel,
            "bytes": row.bytes,
            "head_dim": row.max_dim,
            "cosine": row.cosine,
            "config": str(tuple(config)),
            "ms": cost * 1e3,
            "chosen": config == getattr(row, kernel),
        }
        for config, cost in times.items()
    ]
    return row


def render(rows: tuple[Row, ...]) -> str:
    """Return the text of tile_table.py with these rows; what precedes them in the file is kept."""
    text = Path(tile_table.__file__).read_text(encoding="utf-8")
    head = text[: text.index("ROWS = (")]
    return head + "ROWS = (\n" + "".join(map(_render, rows)) + ")\n"


def _render(row: Row) -> str:
    key = f'"{row.family}", {row.bytes}, {row.max_dim}, {row.cosine}'
    configs = f"{tuple(row.forward)}, {tuple(row.dq)}, {tuple(row.dkdv)}"
    return f'    _row({key}, {configs},\n         why="{row.why}"),\n'


@click.command(context_settings={"show_default": True})
@click.option("--head-dim", "dims", type=click.Choice(["64", "128", "256"]), multiple=True, default=["64"])
@click.option("--bytes", "sizes", type=click.Choice(["2", "4"]), multiple=True, default=["2"])
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default="bench_out")
@click.option("--minutes", default=4.0, help="Try no new configuration after this.")
def main(dims: tuple[str, ...], sizes: tuple[str, ...], out: Path, minutes: float) -> None:
    """Find the fastest rows for this GPU; rewrite tile_table.py, and write it with all trials into OUT."""
    if not torch.cuda.is_available():
        raise click.ClickException("this machine has no GPU to measure")
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
        tuned = best(start, kernel, stopwatch, trials, lambda: time.monotonic() > end)
        why = (
            f"fastest of its neighbours on {facts['device']}, triton {facts['triton']}, at {facts['commit']}"
        )
        rows = [row for row in rows if row[:4] != tuned[:4]] + [tuned._replace(why=why)]
        tile_table.ROWS = tuple(rows)
        tile_row.cache_clear()
        click.echo(f"{tuned[:4]}: {kernel} {tuple(getattr(tuned, kernel))}")
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
