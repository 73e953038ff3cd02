"""The demo's report: Markdown and four figures for people, JSON for programs, a summary to print.

The figures need matplotlib (the `demo` extra).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mvar_kernels import Pyramid
from mvar_models.evaluation.sweep import pyplot
from mvar_models.files import write_text

# What a good run reaches. The report says whether this run did.
LOSS_GATE = 0.03
AGREEMENT_GATE = 0.97
FRECHET_GATE, FRECHET_MARGIN = 50.0, 10.0


def gates(results: dict[str, Any]) -> dict[str, bool]:
    """Return what a good run reaches, and whether this run did."""
    validation, quality = results["validation"], results["quality"]
    loss, frechet = validation["mvar"]["val_loss"], quality["mvar"]["frechet"]
    largest_frechet = min(quality["var"]["frechet"] + FRECHET_MARGIN, FRECHET_GATE)
    return {
        f"held-out cross-entropy within {LOSS_GATE} of the embedded VAR's": loss
        <= validation["var"]["val_loss"] + LOSS_GATE,
        f"classifier agreement at least {AGREEMENT_GATE:.0%}": quality["mvar"]["agreement"] >= AGREEMENT_GATE,
        f"Frechet distance within {FRECHET_MARGIN:.0f} of VAR's and at most {FRECHET_GATE:.0f}": frechet
        <= largest_frechet,
    }


def write(out: Path, results: dict[str, Any], sides: Sequence[int]) -> None:
    """Write report.json and report.md to the folder `out`; `sides` are the scales' grid sides."""
    write_text(out / "report.json", json.dumps({**results, "gates": gates(results)}, indent=2) + "\n")
    write_text(out / "report.md", "\n".join(_markdown(results, sides)) + "\n")


def _markdown(results: dict[str, Any], sides: Sequence[int]) -> Iterator[str]:
    versions = results["environment"]
    yield "# VAR fine-tuned into MVAR on handwritten digits\n"
    yield (
        f"`mvar demo`, {results['steps']} steps, {results['seconds']:.0f} s in all; "
        f"mvar {versions['mvar']} at {versions['commit']}, torch {versions['torch']}, "
        f"Python {versions['python']}, {versions['processor']}, {versions['threads']} threads.\n"
    )
    for gate, passed in gates(results).items():
        yield f"- {'reached' if passed else '**missed**'}: {gate}"
    reached = results["steps_to_gate"] or "not reached in this run"
    yield f"- steps until the cross-entropy stayed within the gate: {reached}\n"
    yield from _validation_table(results["validation"], sides)
    yield from _quality_table(results)
    yield from _cost_table(results)
    yield "![samples](samples.png)\n\n![training](training.png)\n\n![attention](attention.png)\n"
    yield "## Editing\n\n![Bottom halves of held-out digits, in-painted by MVAR](editing.png)\n"
    yield from _emoji_sheets(results["emoji"])


def _emoji_sheets(emoji: dict[str, Any]) -> Iterator[str]:
    yield "## Emoji\n"
    yield (
        f"Generated with the embedded `{emoji['model']}` in {emoji['seconds']:.0f} s: 64 px, ten scales up "
        "to 16 x 16, 680 tokens, windows of 7.\n"
    )
    yield "![classes](emoji/classes.png)\n\nThe images after each scale:\n\n![scales](emoji/scales.png)\n"
    yield "More in [emoji/index.md](emoji/index.md)."


_ROWS = (
    ("var", "VAR, embedded"),
    ("mvar_untuned", "MVAR, VAR's weights untuned"),
    ("mvar", "MVAR, fine-tuned"),
    ("var_control", "VAR, trained for as long (control)"),
)


def _validation_table(validation: dict[str, Any], sides: Sequence[int]) -> Iterator[str]:
    yield "## Held-out cross-entropy, nats per code\n"
    yield "| model | all | " + " | ".join(f"{side} x {side}" for side in sides) + " |"
    yield "|---" * (len(sides) + 2) + "|"
    for key, title in _ROWS:
        cells = [validation[key]["val_loss"], *validation[key]["val_loss_per_scale"]]
        yield f"| {title} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |"
    yield ""


def _quality_table(results: dict[str, Any]) -> Iterator[str]:
    count = results["sampling"]["mvar"]["images"]
    yield "## Generated digits\n"
    accuracy = results["classifier_accuracy"]
    yield (
        f"{count} images per model, with its own sampling preset. Agreement: an SVC trained on the real\n"
        f"training digits gives the requested class (it is right on {accuracy:.1%} of the held-out digits).\n"
        "Frechet distance: to the training digits, 8 x 8 grey pixels from 0 to 16, 20 principal components.\n"
        "Near-copies: closer to a training digit than 95 % of the held-out digits are.\n"
    )
    yield "| images | agreement | Frechet distance | near-copies |"
    yield "|---|---|---|---|"
    titles = {
        "var": "VAR",
        "mvar": "MVAR, fine-tuned",
        "real": "held-out real digits",
        "reconstructed": "the same through the VQVAE",
    }
    for key, title in titles.items():
        values = results["quality"][key]
        agreement, frechet, copies = (values[name] for name in ("agreement", "frechet", "near_copies"))
        yield f"| {title} | {agreement:.1%} | {frechet:.1f} | {copies:.1%} |"
    yield ""


def _cost_table(results: dict[str, Any]) -> Iterator[str]:
    attention, sampling = results["attention"], results["sampling"]
    yield "## Cost\n"
    size, dense = attention["kernel_size"], attention["dense_scales"]
    yield f"{attention['tokens']} tokens; windows {size} x {size}, the first {dense} scales dense.\n"
    yield "| model | attended pairs | sampling, s | images / s | peak memory of sampling, MB | training, s |"
    yield "|---|---|---|---|---|---|"
    trained = {"var": "var_control", "mvar": "mvar"}
    for key, title in (("var", "VAR"), ("mvar", "MVAR")):
        pairs, cost = attention[f"pairs_{key}"], sampling[key]
        rate, peak = cost["images"] / cost["seconds"], cost["peak_bytes"] / 1e6
        training = results["validation"][trained[key]]["seconds"]
        yield f"| {title} | {pairs:,} | {cost['seconds']:.1f} | {rate:.0f} | {peak:.0f} | {training:.0f} |"
    yield "\nAt this size attention is a small part of the work; the times say little about larger models.\n"


def summary(out: Path, results: dict[str, Any]) -> Iterator[str]:
    """Yield the lines to print at the end; the last ones say where to look."""
    validation, quality = results["validation"], results["quality"]
    yield ""
    for gate, passed in gates(results).items():
        yield f"[{'ok' if passed else 'MISSED'}] {gate}"
    loss = {name: values["val_loss"] for name, values in validation.items()}
    yield (
        f"cross-entropy: VAR {loss['var']:.3f}, MVAR {loss['mvar_untuned']:.3f} untuned, {loss['mvar']:.3f} "
        f"after {results['steps']} steps; VAR trained for as long {loss['var_control']:.3f}"
    )
    agreement = {name: values["agreement"] for name, values in quality.items()}
    frechet = {name: values["frechet"] for name, values in quality.items()}
    yield (
        f"agreement: VAR {agreement['var']:.1%}, MVAR {agreement['mvar']:.1%}; Frechet distance: "
        f"VAR {frechet['var']:.1f}, MVAR {frechet['mvar']:.1f}, real {frechet['real']:.1f}"
    )
    files = [
        str(out / f"{name}.png") for name in ("samples", "training", "attention", "editing", "emoji/classes")
    ]
    yield f"look at {', '.join(files)}; read {out / 'report.md'}"


def plot_samples(path: Path, images: Mapping[str, np.ndarray], columns: int, names: Sequence[str]) -> None:
    """Plot one panel per model with one row per class.

    Args:
        path: File to write.
        images: Title -> (classes * n, R, R, 3) images, ordered by class.
        columns: Images per row.
        names: Names of the classes.
    """
    with _figure(path, 1, len(images), (5.2 * len(images), 6.6)) as axes:
        for axis, (title, shown) in zip(axes, images.items()):
            side = shown.shape[1]
            chosen = shown.reshape(len(names), -1, side, side, 3)[:, :columns]
            mosaic = chosen.transpose(0, 2, 1, 3, 4).reshape(len(names) * side, -1, 3)
            axis.imshow(mosaic, interpolation="nearest")
            axis.set_title(title)
            axis.set_xticks([])
            axis.set_yticks([side * (row + 0.5) for row in range(len(names))], names)
            axis.tick_params(length=0)


def plot_training(
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
        target: Held-out cross-entropy of the embedded VAR, plotted as a line.
    """
    with _figure(path, 1, 2, (11.5, 4.4)) as (left, right):
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
            places = np.arange(len(sides)) + (index - (len(per_scale) - 1) / 2) * width
            right.bar(places, values, width, label=name)
        right.set_xticks(range(len(sides)), [f"{side} x {side}" for side in sides])
        right.set_xlabel("scale")
        right.set_ylabel("held-out cross-entropy, nats per code")
        right.legend()


def plot_attention(path: Path, pyramid: Pyramid) -> None:
    """Plot who attends to whom: VAR's block-causal mask, and the pyramid's windows."""
    with _figure(path, 1, 2, (11, 5.6)) as axes:
        for axis, title, mask in zip(axes, ("VAR", "MVAR"), (pyramid.causal_mask(), pyramid.mask())):
            axis.imshow(mask.numpy(), cmap="Greys", interpolation="nearest", vmin=0, vmax=1)
            for offset in pyramid.offsets[1:]:
                axis.axhline(offset - 0.5, color="tab:orange", linewidth=0.4)
                axis.axvline(offset - 0.5, color="tab:orange", linewidth=0.4)
            pairs = int(mask.sum())
            axis.set_title(f"{title}: {pairs:,} of {mask.numel():,} pairs ({pairs / mask.numel():.1%})")
            axis.set_xlabel("key token")
            axis.set_ylabel("query token")


def plot_edits(path: Path, rows: Mapping[str, np.ndarray]) -> None:
    """Plot rows of images (n, R, R, 3), each under the one that it was made from."""
    with _figure(path, len(rows), 1, (9, 1.1 * len(rows))) as axes:
        for axis, (title, images) in zip(axes, rows.items()):
            axis.imshow(np.concatenate(list(images), axis=1), interpolation="nearest")
            axis.set_ylabel(title, rotation=0, ha="right", va="center")
            axis.set_xticks([])
            axis.set_yticks([])


@contextmanager
def _figure(path: Path, rows: int, columns: int, size: tuple[float, float]) -> Iterator[Sequence[Any]]:
    """Yield the axes of a figure, which is written to `path` afterwards."""
    plt = pyplot()
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    yield axes.ravel()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
