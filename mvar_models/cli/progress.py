"""Progress bars of the subcommands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

# A metric of a step, and what the bar calls it.
_SHOWN = {
    "loss": "loss",
    "val_loss": "val_loss",
    "val_psnr": "val_psnr",
    "fd": "fd",
    "skipped_steps": "skipped",
    "images_per_second": "images/s",
    "memory_gb": "GB",
}


@contextmanager
def count_progress(unit: str, *, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal while open; yields `report(done, total)`.

    Args:
        unit: What is counted.
        shown: Whether this process shows it: under torchrun only rank 0 does.
    """
    with _bar(unit, shown=shown and sys.stderr.isatty()) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield report


@contextmanager
def step_progress(steps: int, *, shown: bool = True) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Show a bar over optimizer steps while open; yields `report(metrics)`, to be called after each step.

    Log lines are printed above the bar.

    Args:
        steps: Steps of the whole run.
        shown: Whether this process shows it: under torchrun only rank 0 does.
    """
    bar: tqdm[Any] | None = None

    def report(metrics: dict[str, Any]) -> None:
        nonlocal bar
        if bar is None:
            # Starting after the first step keeps compilation, and the steps before a resume, out of the rate.
            bar = _bar("step", shown=shown, total=steps, initial=metrics["step"])
        bar.update(metrics["step"] - bar.n)
        figures = {title: f"{metrics[name]:.4g}" for name, title in _SHOWN.items() if name in metrics}
        bar.set_postfix(figures, refresh=False)

    with logging_redirect_tqdm():
        try:
            yield report
        finally:
            if bar is not None:
                bar.close()


def _bar(unit: str, *, shown: bool, **options: Any) -> tqdm[Any]:
    return tqdm(unit=unit, dynamic_ncols=True, disable=not shown, **options)
