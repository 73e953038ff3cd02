"""What the command line settles for every suite, and what suites share when they report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.core import machine, plots, report
from benchmarks.core.report import Record


@dataclass(frozen=True)
class Settings:
    """Options of `python -m benchmarks`.

    Attributes:
        device: Where to measure.
        facts: `machine.describe(device)`.
        quick: Fewer cases, smaller models, shorter timings.
        seconds: Time per competitor and case.
        out: Folder for the results.
        only: Attention, family: measure only what has this in its name, and the dense one, or VAR.
        compare_with: Attention: an earlier attention.json.
        capability: Emulated: compute capability to compile for, 80 or 90.
        data: Evaluation, family: the real images, as `--data` of training.
        neon: Family: a model folder of `mvar neon`; without one its images are not judged.
        scorer: Family: a run of `mvar train-scorer`, likewise.
    """

    device: torch.device
    facts: Record
    quick: bool
    seconds: float
    out: Path
    only: str | None = None
    compare_with: Path | None = None
    capability: int = 90
    data: str = "digits"
    neon: str | None = None
    scorer: str | None = None


def report_times(settings: Settings, name: str, records: list[Record], base: str) -> list[str]:
    """Write a model suite's results so far, with a bar chart over `base`; return the lines to print."""
    lines = list(report.times_table(records, base))
    report.write(settings.out, name, settings.facts, records, lines)
    figure = plots.bars_figure(records, f"{base} = 1")
    images = plots.save(figure, settings.out / f"{name}.png", machine.line(settings.facts))
    return [*lines, written(settings.out, name, images)]


def written(out: Path, name: str, images: list[Path]) -> str:
    """Return the line that says which files a suite wrote."""
    names = [f"{name}.csv", f"{name}.json", f"{name}.md", *(path.name for path in images)]
    return f"written to {out}: {', '.join(names)}"
