"""The demo's report: Markdown to read, JSON to compute with, a few lines to print."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mvar_models.files import write_text

# What a good run reaches; the report says of each whether this one did.
LOSS_GATE = 0.03
AGREEMENT_GATE = 0.97
FRECHET_GATE, FRECHET_MARGIN = 50.0, 10.0


def gates(results: dict[str, Any]) -> dict[str, bool]:
    validation, quality = results["validation"], results["quality"]
    return {
        f"held-out cross-entropy within {LOSS_GATE} of the embedded VAR's": validation["mvar"]["val_loss"]
        <= validation["var"]["val_loss"] + LOSS_GATE,
        f"classifier agreement at least {AGREEMENT_GATE:.0%}": quality["mvar"]["agreement"] >= AGREEMENT_GATE,
        f"Frechet distance within {FRECHET_MARGIN:.0f} of VAR's and at most {FRECHET_GATE:.0f}": quality[
            "mvar"
        ]["frechet"]
        <= min(quality["var"]["frechet"] + FRECHET_MARGIN, FRECHET_GATE),
    }


def write(out: Path, results: dict[str, Any], sides: tuple[int, ...]) -> None:
    """report.json and report.md in `out`."""
    write_text(out / "report.json", json.dumps({**results, "gates": gates(results)}, indent=2) + "\n")
    write_text(out / "report.md", "\n".join(_markdown(results, sides)) + "\n")


def _markdown(results: dict[str, Any], sides: tuple[int, ...]) -> Iterator[str]:
    environment = results["environment"]
    yield "# VAR fine-tuned into MVAR on handwritten digits\n"
    yield (
        f"`mvar demo`, {results['steps']} steps, {results['seconds']:.0f} s in all; mvar {environment['mvar']} at {environment['commit']}, "
        f"torch {environment['torch']}, Python {environment['python']}, {environment['processor']}, {environment['threads']} threads.\n"
    )
    for gate, passed in gates(results).items():
        yield f"- {'reached' if passed else '**missed**'}: {gate}"
    reached = results["steps_to_gate"]
    yield f"- steps until the cross-entropy stayed within the gate: {reached if reached else 'not reached in this run'}\n"
    yield from _validation_table(results["validation"], sides)
    yield from _quality_table(results)
    yield from _cost_table(results)
    yield "![samples](samples.png)\n\n![training](training.png)\n\n![attention](attention.png)"


_ROWS = (
    ("var", "VAR, embedded"),
    ("mvar_untuned", "MVAR, VAR's weights untuned"),
    ("mvar", "MVAR, fine-tuned"),
    ("var_control", "VAR, trained on as long (control)"),
)


def _validation_table(validation: dict[str, Any], sides: tuple[int, ...]) -> Iterator[str]:
    yield "## Held-out cross-entropy, nats a code\n"
    yield "| model | all | " + " | ".join(f"{side} x {side}" for side in sides) + " |"
    yield "|---" * (len(sides) + 2) + "|"
    for key, title in _ROWS:
        cells = [validation[key]["val_loss"], *validation[key]["val_loss_per_scale"]]
        yield f"| {title} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |"
    yield ""


def _quality_table(results: dict[str, Any]) -> Iterator[str]:
    pictures = results["sampling"]["mvar"]["pictures"]
    yield "## Drawn digits\n"
    yield (
        f"{pictures} pictures a model, its own sampling preset. Agreement: an SVC trained on the real training digits gives the asked class (it "
        f"is right on {results['classifier_accuracy']:.1%} of the held-out digits). Frechet distance: to the training digits, 8 x 8 grey "
        "pixels in 0 .. 16 on 20 principal components. Near-copies: closer to a training digit than 95 % of the held-out digits are.\n"
    )
    yield "| pictures | agreement | Frechet distance | near-copies |"
    yield "|---|---|---|---|"
    titles = {
        "var": "VAR",
        "mvar": "MVAR, fine-tuned",
        "real": "held-out real digits",
        "reconstructed": "the same through the VQVAE",
    }
    for key, title in titles.items():
        quality = results["quality"][key]
        yield f"| {title} | {quality['agreement']:.1%} | {quality['frechet']:.1f} | {quality['near_copies']:.1%} |"
    yield ""


def _cost_table(results: dict[str, Any]) -> Iterator[str]:
    attention, sampling = results["attention"], results["sampling"]
    yield "## Cost\n"
    size = attention["kernel_size"]
    yield f"{attention['tokens']} tokens; windows {size} x {size}, the first {attention['dense_scales']} scales dense.\n"
    yield "| model | attended pairs | drawing, s | pictures / s | peak memory of drawing, MB | fine-tuning, s |"
    yield "|---|---|---|---|---|---|"
    trained = {"var": "var_control", "mvar": "mvar"}
    for key, title in (("var", "VAR"), ("mvar", "MVAR")):
        drawn = sampling[key]
        yield (
            f"| {title} | {attention['pairs_' + key]:,} | {drawn['seconds']:.1f} | {drawn['pictures'] / drawn['seconds']:.0f} "
            f"| {drawn['peak_bytes'] / 1e6:.0f} | {results['validation'][trained[key]]['seconds']:.0f} |"
        )
    yield "\nAt this size attention is a small part of the work; the times say little about larger models.\n"


def summary(out: Path, results: dict[str, Any]) -> Iterator[str]:
    validation, quality = results["validation"], results["quality"]
    yield ""
    for gate, passed in gates(results).items():
        yield f"[{'ok' if passed else 'MISSED'}] {gate}"
    yield (
        f"cross-entropy: VAR {validation['var']['val_loss']:.3f}, MVAR {validation['mvar_untuned']['val_loss']:.3f} untuned, "
        f"{validation['mvar']['val_loss']:.3f} after {results['steps']} steps; VAR trained on as long {validation['var_control']['val_loss']:.3f}"
    )
    yield (
        f"agreement: VAR {quality['var']['agreement']:.1%}, MVAR {quality['mvar']['agreement']:.1%}; "
        f"Frechet distance: VAR {quality['var']['frechet']:.1f}, MVAR {quality['mvar']['frechet']:.1f}, real {quality['real']['frechet']:.1f}"
    )
    yield f"look at {out / 'samples.png'}, {out / 'training.png'}, {out / 'attention.png'}; read {out / 'report.md'}"
