"""Progress of long loops: a bar on a terminal, a line now and then elsewhere, nothing unless asked for.

A loop says what it counts with `counting`, wherever it is; a program shows the loops inside `showing`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

SAMPLING = "sampling"
# Seconds after which the first plain line is written, and between lines.
_FIRST_LINE, _BETWEEN_LINES = 1.0, 10.0


class Meter:
    """Counts a loop and shows nothing.

    Args:
        title: What the loop does.
        total: What `done` ends with.
        unit: What is counted.
        done: What was done before.
    """

    def __init__(self, title: str, total: float, unit: str, done: float) -> None:
        self.title, self.total, self.unit, self.done = title, total, unit, done

    def advance(self, count: float = 1, figures: Mapping[str, str] | None = None) -> None:
        """Count further; `figures` are shown with the count."""
        del figures
        done, whole = self.done + count, round(self.done + count)
        self.done = whole if abs(done - whole) < 1e-6 else done  # thirds of an image add up

    def close(self) -> None:
        """End the loop, finished or not."""


class Bar(Meter):
    """Shows a bar of tqdm, from the first moment on."""

    def __init__(self, title: str, total: float, unit: str, done: float) -> None:
        super().__init__(title, total, unit, done)
        digits = 1 if title == SAMPLING else 0  # scales are fractions of images
        self._bar: tqdm[Any] = tqdm(
            desc=title,
            total=total,
            initial=done,  # type: ignore[arg-type]
            unit=f" {unit}",
            dynamic_ncols=True,
            bar_format=f"{{desc}}: {{percentage:3.0f}}%|{{bar}}| {{n:,.{digits}f}} of {{total:,.0f}} {unit}s "
            "[{elapsed}, {remaining} left, {rate_fmt}{postfix}]",
        )

    def advance(self, count: float = 1, figures: Mapping[str, str] | None = None) -> None:
        super().advance(count)
        if figures:
            self._bar.set_postfix(figures, refresh=False)
        self._bar.update(self.done - self._bar.n)

    def close(self) -> None:
        self._bar.close()


class Lines(Meter):
    """Prints a line after a second, and then one every ten."""

    def __init__(self, title: str, total: float, unit: str, done: float) -> None:
        super().__init__(title, total, unit, done)
        self._before, self._begun = done, time.monotonic()
        self._due = self._begun + _FIRST_LINE

    def advance(self, count: float = 1, figures: Mapping[str, str] | None = None) -> None:
        super().advance(count)
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _BETWEEN_LINES
            seconds = now - self._begun
            left = seconds * (self.total - self.done) / max(self.done - self._before, 1e-9)
            more = "".join(f", {name} {value}" for name, value in (figures or {}).items())
            counted = f"{self.done:,.0f} of {self.total:,.0f} {self.unit}s"
            line = f"{self.title}: {counted} in {seconds:,.0f} s, about {left:,.0f} s left{more}"
            print(line, file=sys.stderr, flush=True)


_display: Callable[[str, float, str, float], Meter] = Meter
_open: list[Meter] = []


@contextlib.contextmanager
def showing(display: Callable[[str, float, str, float], Meter] | None = None) -> Iterator[None]:
    """Show the loops inside, and log lines above their bars.

    Args:
        display: Makes the meter of a loop. Default: bars on a terminal, else lines; nothing but on rank 0.
    """
    global _display
    terminal = sys.stderr.isatty()
    if display is None:
        display = Bar if terminal else Lines
        display = display if os.environ.get("RANK", "0") == "0" else Meter
    before, _display = _display, display
    try:
        with logging_redirect_tqdm() if terminal else contextlib.nullcontext():
            yield
    finally:
        _display = before


@contextlib.contextmanager
def counting(
    title: str, total: float, unit: str = "image", *, done: float = 0, shown: bool = False
) -> Iterator[Meter]:
    """Count a loop while open.

    Args:
        title: What the loop does.
        total: What its count ends with.
        unit: What is counted.
        done: What was done before.
        shown: Whether to show a bar even outside `showing`.
    """
    meter = (Bar if shown else _display)(title, total, unit, done)
    _open.append(meter)
    try:
        yield meter
    finally:
        _open.remove(meter)
        meter.close()


def sampled(images: float) -> None:
    """Count images, or the share of them that a scale is, in the sampling loop that is at work, if any."""
    if _open and _open[-1].title == SAMPLING:
        _open[-1].advance(images)


def say(line: str) -> None:
    """Print a line to the standard output, above all bars."""
    tqdm.write(line)
