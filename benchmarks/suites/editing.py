"""The editing suite: both rules of in-painting on the embedded digits, VAR and MVAR.

Held-out digits lose their centre or their bottom half, which is drawn as the same class or as another one.
A classifier fitted to real digits says which class the result is. It runs on a CPU in a few minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.core import machine, report
from benchmarks.core.report import Record
from benchmarks.suites.settings import Settings, written
from mvar_models.data.digits import Digits
from mvar_models.demo.quality import DigitJudge, features
from mvar_models.files import replacing
from mvar_models.images import grid, to_uint8
from mvar_models.pipeline import Pipeline, pipeline_for
from mvar_models.sampling.inpainting import RULES

MODELS = ("var-digits", "mvar-digits")
_DIGITS, _SEEDS = 150, 3
_OTHER = 3  # the other class is this many further on
_SHOWN = 12
_BATCH = 75


def run(settings: Settings) -> list[str]:
    """Measure every model, hole, class and rule; write the table, and edits of twelve digits as an image.

    The image has, for each hole, the digits, what is left of them, then one row per class and rule, as in the
    table.
    """
    digits, judge = judged_digits()
    count, seeds = (20, 1) if settings.quick else (_DIGITS, _SEEDS)
    chosen = digits.held_out[:count]
    images, labels = (digits.images(chosen) + 1) / 2, digits.labels[chosen]
    records: list[Record] = []
    shown: list[Image.Image] = []
    for name in MODELS:
        pipeline = pipeline_for(name, device=str(settings.device))
        for hole, mask in holes(images.shape[-1]).items():
            click.echo(f"{name}, {hole} ...", err=True)
            if name == MODELS[-1]:
                shown += strip(images) + strip(torch.where(mask, 0.5, images))
            for record, drawn in measured(pipeline, judge, images, labels, mask, seeds):
                records.append({"model": name, "hole": hole, **record})
                if name == MODELS[-1]:
                    shown += strip(drawn)
    lines = [summary(count, seeds, judge), "", *table(records)]
    report.write(settings.out, "editing", settings.facts, records, [machine.line(settings.facts), "", *lines])
    with replacing(settings.out / "editing.png") as temporary:
        grid(shown, columns=_SHOWN).save(temporary, format="png")
    return [*lines, written(settings.out, "editing", [Path("editing.png")])]


def judged_digits() -> tuple[Digits, DigitJudge]:
    """Return the digits, and a judge whose classifier was fitted to the training digits."""
    digits = Digits()
    parts = [
        (features(to_uint8(digits.images(p))), digits.labels[p]) for p in (digits.train, digits.held_out)
    ]
    return digits, DigitJudge(*parts[0], *parts[1])


def holes(side: int) -> dict[str, Tensor]:
    """Return masks (side, side) bool of what is drawn."""
    centre, bottom = torch.zeros(2, side, side, dtype=torch.bool)
    centre[side // 4 : -side // 4, side // 4 : -side // 4] = True
    bottom[side // 2 :] = True
    return {"centre": centre, "bottom half": bottom}


def measured(
    pipeline: Pipeline, judge: DigitJudge, images: Tensor, labels: np.ndarray, mask: Tensor, seeds: int
) -> Iterator[tuple[Record, Tensor]]:
    """Yield one record per class and rule, with the pasted images of the first seed.

    Args:
        pipeline: Draws the edits.
        judge: Says which class they are.
        images: (n, 3, R, R) in [0, 1].
        labels: (n,) their classes.
        mask: (R, R) bool, what is drawn.
        seeds: How many times everything is drawn.
    """
    for title, asked in (("same", labels), ("other", (labels + _OTHER) % 10)):
        for rule in RULES:
            figures: list[dict[str, float]] = []
            first: Tensor | None = None
            for repeat in range(seeds):
                options: dict[str, Any] = {"seed": repeat * len(images), "rule": rule, "paste": False}
                drawn = pipeline.inpaint(
                    images, mask, asked.tolist(), output_type="pt", batch_size=_BATCH, batch_invariant=False,
                    **options,
                ).images.cpu()  # fmt: skip
                # At 32 px the blend is one pixel wide, so pasting is a plain choice.
                pasted = torch.where(mask, drawn, images)
                first = pasted if first is None else first
                figures.append(_figures(judge, images, drawn, pasted, asked, mask))
            assert first is not None
            record: Record = {"class": title, "rule": rule, "seam of the digits": seam(images, mask)}
            for key in figures[0]:
                values = [figure[key] for figure in figures]
                record[key] = float(np.mean(values))
                record[f"{key}, deviation over seeds"] = float(np.std(values))
            yield record, first


def _figures(
    judge: DigitJudge, images: Tensor, drawn: Tensor, pasted: Tensor, asked: np.ndarray, mask: Tensor
) -> dict[str, float]:
    def agreement(found: Tensor) -> float:
        return judge.judge(features(to_uint8(found * 2 - 1)), asked).agreement

    error = (drawn - images)[..., ~mask].square().mean()
    return {
        "agreement": agreement(drawn),
        "agreement, pasted": agreement(pasted),
        "PSNR of the kept part": float(-10 * error.log10()),
        "seam": seam(drawn, mask),
        "seam, pasted": seam(pasted, mask),
    }


def seam(images: Tensor, mask: Tensor) -> float:
    """Return the mean difference of grey between neighbours on both sides of the mask's edge, of 255."""
    grey = images.mean(1) * 255
    across = (grey[:, :, 1:] - grey[:, :, :-1]).abs()[:, mask[:, 1:] != mask[:, :-1]]
    down = (grey[:, 1:] - grey[:, :-1]).abs()[:, mask[1:] != mask[:-1]]
    return float(torch.cat([across.flatten(), down.flatten()]).mean())


def strip(images: Tensor) -> list[Image.Image]:
    """Return the first twelve of images (n, 3, R, R) in [0, 1]: a row of editing.png."""
    return [Image.fromarray(values) for values in to_uint8(images[:_SHOWN] * 2 - 1)]


def summary(count: int, seeds: int, judge: DigitJudge) -> str:
    """Return what the table is about."""
    return (
        f"{count} held-out digits, {seeds} seed{'s' if seeds > 1 else ''}, presets of the checkpoints; the "
        f"classifier is right on {judge.accuracy:.1%} of the held-out digits."
    )


def table(records: list[Record]) -> Iterator[str]:
    """Yield the Markdown table."""
    titles = ["model", "hole", "class", "rule", "agrees, pasted", "not pasted", "PSNR kept, dB"]
    yield from report.header([*titles, "seam, pasted", "of the digits"])
    for r in records:
        yield report.row(
            [
                *(r[name] for name in ("model", "hole", "class", "rule")),
                *(_spread(r, name) for name in ("agreement, pasted", "agreement")),
                f"{r['PSNR of the kept part']:.1f}",
                f"{r['seam, pasted']:.1f}",
                f"{r['seam of the digits']:.1f}",
            ]
        )


def _spread(record: Record, name: str) -> str:
    return f"{record[name]:.3f} ± {record[f'{name}, deviation over seeds']:.3f}"
