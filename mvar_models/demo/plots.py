"""The demo's four figures. Needs matplotlib (the `demo` extra)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mvar_kernels import Pyramid
from mvar_models.optional import require


def _pyplot() -> Any:
    require("matplotlib", "demo").use("Agg")
    return require("matplotlib.pyplot", "demo")


def samples(path: Path, drawn: Mapping[str, np.ndarray], columns: int, names: Sequence[str]) -> None:
    """Plot one panel per model with one row per class.

    Args:
        path: File to write.
        drawn: Title -> (classes * n, R, R, 3) images, ordered by class.
        columns: Images per row.
        names: Names of the classes.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(1, len(drawn), figsize=(5.2 * len(drawn), 6.6))
    for axis, (title, images) in zip(np.atleast_1d(axes), drawn.items()):
        per_class = len(images) // len(names)
        side = images.shape[1]
        chosen = images.reshape(len(names), per_class, side, side, 3)[:, :columns]
        axis.imshow(
            chosen.transpose(0, 2, 1, 3, 4).reshape(len(names) * side, columns * side, 3),
            interpolation="nearest",
        )
        axis.set_title(title)
        axis.set_xticks([])
        axis.set_yticks([side * (row + 0.5) for row in range(len(names))], names)
        axis.tick_params(length=0)
    _finish(plt, figure, path)


def training(
    path: Path,
    losses: Mapping[str, Sequence[float]],
    per_scale: Mapping[str, Sequence[float]],
    sides: Sequence[int],
    target: float,
) -> None:
    """Plot the loss over steps with its running mean, and the held-out cross-entropy per scale as bars.

    Args:
        path: File to write.
        losses: Model -> loss of each step.
        per_scale: Model -> held-out cross-entropy of each scale.
        sides: Grid side of each scale.
        target: Held-out cross-entropy of the embedded VAR, drawn as a line.
    """
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.4))
    for name, values in losses.items():
        steps = np.arange(1, len(values) + 1)
        window = max(1, len(values) // 20)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        (line,) = left.plot(steps[window - 1 :], smooth, label=name)
        left.plot(steps, values, color=line.get_color(), alpha=0.25, linewidth=0.8)
    left.axhline(target, color="black", linestyle=":", linewidth=1, label="embedded VAR, held out")
    left.set_xlabel("step")
    left.set_ylabel("training cross-entropy, nats per code")
    left.legend()
    width = 0.8 / len(per_scale)
    for index, (name, values) in enumerate(per_scale.items()):
        right.bar(
            np.arange(len(sides)) + (index - (len(per_scale) - 1) / 2) * width, values, width, label=name
        )
    right.set_xticks(range(len(sides)), [f"{side} x {side}" for side in sides])
    right.set_xlabel("scale")
    right.set_ylabel("held-out cross-entropy, nats per code")
    right.legend()
    _finish(plt, figure, path)


def attention(path: Path, pyramid: Pyramid) -> None:
    """Plot who attends to whom: VAR's block-causal mask, and the pyramid's windows."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.6))
    for axis, title, mask in zip(axes, ("VAR", "MVAR"), (pyramid.causal_mask(), pyramid.mask())):
        axis.imshow(mask.numpy(), cmap="Greys", interpolation="nearest", vmin=0, vmax=1)
        for offset in pyramid.offsets[1:]:
            axis.axhline(offset - 0.5, color="tab:orange", linewidth=0.4)
            axis.axvline(offset - 0.5, color="tab:orange", linewidth=0.4)
        pairs = int(mask.sum())
        axis.set_title(f"{title}: {pairs:,} of {mask.numel():,} pairs ({pairs / mask.numel():.1%})")
        axis.set_xlabel("key token")
        axis.set_ylabel("query token")
    _finish(plt, figure, path)


def edits(path: Path, rows: Mapping[str, np.ndarray]) -> None:
    """Plot rows of images, each under the one that it was made from.

    Args:
        path: File to write.
        rows: Title -> (n, R, R, 3) images.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(len(rows), 1, figsize=(9, 1.1 * len(rows)))
    for axis, (title, images) in zip(axes, rows.items()):
        axis.imshow(np.concatenate(list(images), axis=1), interpolation="nearest")
        axis.set_ylabel(title, rotation=0, ha="right", va="center")
        axis.set_xticks([])
        axis.set_yticks([])
    _finish(plt, figure, path)


def _finish(plt: Any, figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
