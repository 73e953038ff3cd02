"""The main job on embedded data: fine-tune the embedded VAR into MVAR on digits, compare, generate emoji.

mvar demo --out demo_out        (or `make demo`)
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mvar_models.data.digits import Digits
from mvar_models.demo import report
from mvar_models.demo.gallery import draw_gallery
from mvar_models.demo.quality import DigitJudge, Generated, features, generate_in_process
from mvar_models.environment import environment
from mvar_models.evaluation.sweep import pyplot
from mvar_models.images import to_uint8
from mvar_models.networks.mvar import MVAR
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.networks.var import VAR
from mvar_models.networks.vqvae import VQVAE
from mvar_models.pipeline import pipeline_for
from mvar_models.sampling.progress import counting
from mvar_models.tokens.encode import tokenize_split
from mvar_models.training.runs import start_transformer_run, train_transformer
from mvar_models.training.settings import TransformerSettings
from mvar_models.training.transformer_task import TokenSets, TransformerTask

KERNEL_SIZE = 3
DENSE_SCALES = 3
# The best of four settings with equal work (docs/measurements.md, "The demo").
STEPS = 700
_VALIDATE_EVERY = 100
_LR = 1.5e-3
_BATCH_SIZE = 16
_COPIES = 12
_SAMPLE_BATCH = 100
_COLUMNS = 8
_CLASSES = 10
_EMOJI_MODEL, _EMOJI_PER_CLASS = "mvar-emoji", 6
# A short demo, such as the one in tests, generates fewer emoji as well.
_DIGITS_PER_EMOJI = 150

# Name in the report, architecture, what is said of it. The runs differ in the architecture alone.
_RUNS = (
    ("mvar", "mvar", "fine-tuning VAR into MVAR"),
    ("var_control", "var", "control: training VAR further"),
)


@dataclass(frozen=True)
class _Curve:
    """Training loss of each step, and (step, held-out cross-entropy) of each validation."""

    losses: list[float]
    validations: list[tuple[int, float]]


def run_demo(out: Path, steps: int | None = None, samples: int = 1000) -> Iterator[str]:
    """Run everything, yielding lines to print; the last ones give the figures and the files.

    Args:
        out: Folder for the report; runs of an earlier demo in it are removed.
        steps: Optimizer steps of each run, 700 by default.
        samples: Digits to generate with each model, rounded up to the same number of each class.
    """
    pyplot()  # its absence should be known before minutes of training
    begun = time.perf_counter()
    steps = steps or STEPS
    out.mkdir(parents=True, exist_ok=True)
    runs = out / "runs"
    shutil.rmtree(runs, ignore_errors=True)

    vqvae, var = VQVAE.from_pretrained("vae-digits"), VAR.from_pretrained("var-digits")
    source = Digits(vqvae.config.resolution)
    yield (
        f"{len(source.train)} training and {len(source.held_out)} held-out digits of {len(source)}; "
        f"encoding {_COPIES} variants of each ..."
    )
    tokens = tokenize_split(vqvae, source, _COPIES, seed=0)

    untuned = MVAR.from_var(var, KERNEL_SIZE, DENSE_SCALES)
    validation = {"var": _validate(var, vqvae, tokens), "mvar_untuned": _validate(untuned, vqvae, tokens)}
    target = validation["var"]["val_loss"]
    yield f"embedded VAR: held-out cross-entropy {target:.4f} nats per code"
    yield f"the same weights with MVAR's windows, untuned: {validation['mvar_untuned']['val_loss']:.4f}"

    curves = {}
    for name, arch, what in _RUNS:
        yield f"{what} for {steps} steps ..."
        validation[name], curves[name] = _train(runs / name, arch, steps, tokens)

    yield f"generating {samples} digits with each model and judging them ..."
    generated = _generate(out, {"var": "var-digits", "mvar": str(runs / "mvar" / "model")}, samples)
    yield f"generating emoji with the embedded {_EMOJI_MODEL} ..."
    emoji_begun = time.perf_counter()
    per_class = max(1, min(samples // _DIGITS_PER_EMOJI, _EMOJI_PER_CLASS))
    draw_gallery(pipeline_for(_EMOJI_MODEL), out / "emoji", name=_EMOJI_MODEL, samples=per_class)
    emoji_seconds = time.perf_counter() - emoji_begun
    results = {
        "validation": validation,
        "steps": steps,
        "steps_to_gate": steps_to_gate(curves["mvar"].validations, target),
        **_judge(source, vqvae, generated),
        "attention": _attention_figures(untuned),
        "emoji": {"model": _EMOJI_MODEL, "seconds": emoji_seconds},
        "seconds": time.perf_counter() - begun,
        "environment": environment(),
    }
    _plot(out, results, curves, generated, untuned, source.class_names)
    report.plot_edits(out / "editing.png", _edit(source, str(runs / "mvar" / "model")))
    report.write(out, results, vqvae.config.sides)
    yield from report.summary(out, results)


def _plot(
    out: Path,
    results: dict[str, Any],
    curves: dict[str, _Curve],
    generated: dict[str, Generated],
    model: MVAR,
    names: Sequence[str],
) -> None:
    validation, sides = results["validation"], model.config.sides
    images = {"VAR": generated["var"].images, "MVAR": generated["mvar"].images}
    report.plot_samples(out / "samples.png", images, _COLUMNS, names)
    losses = {"MVAR, fine-tuned": curves["mvar"].losses, "VAR, trained on": curves["var_control"].losses}
    bars = {"VAR": "var", "MVAR untuned": "mvar_untuned", "MVAR fine-tuned": "mvar"}
    per_scale = {title: validation[name]["val_loss_per_scale"] for title, name in bars.items()}
    report.plot_training(out / "training.png", losses, per_scale, sides, validation["var"]["val_loss"])
    report.plot_attention(out / "attention.png", model.pyramid)


def _validate(model: ScaleTransformer, vqvae: VQVAE, tokens: TokenSets) -> dict[str, Any]:
    return TransformerTask(model, vqvae, *tokens, TransformerSettings(data="digits", out="")).validate()


def _train(folder: Path, arch: str, steps: int, tokens: TokenSets) -> tuple[dict[str, Any], _Curve]:
    """Return the last validation with the seconds that training took, and the curves."""
    run = start_transformer_run(
        data="digits",
        out=str(folder),
        arch=arch,
        init="var-digits",
        kernel_size=KERNEL_SIZE,
        dense_scales=DENSE_SCALES,
        steps=steps,
        batch_size=_BATCH_SIZE,
        lr=_LR,
        copies=_COPIES,
        validate_every=_VALIDATE_EVERY,
    )
    begun = time.perf_counter()
    with counting("training", steps, "step") as meter:

        def show(values: dict[str, Any]) -> None:
            meter.advance(1, {name: f"{values[name]:.3f}" for name in ("loss", "val_loss") if name in values})

        result = train_transformer(run, show, tokens)
    lines = run.folder.metrics()
    curve = _Curve(
        losses=[line["loss"] for line in lines if "loss" in line],
        validations=[(line["step"], line["val_loss"]) for line in lines if "val_loss" in line],
    )
    return {**result, "seconds": time.perf_counter() - begun}, curve


def steps_to_gate(validations: list[tuple[int, float]], target: float) -> int | None:
    """Return the first validated step from which the cross-entropy stays within the gate of VAR's."""
    reached = None
    for step, loss in validations:
        within = loss <= target + report.LOSS_GATE
        reached = (reached or step) if within else None
    return reached


def _generate(out: Path, models: dict[str, str], samples: int) -> dict[str, Generated]:
    """Generate digits with each model, and keep them as .npz files."""
    generated = {}
    for name, model in models.items():
        generated[name] = each = generate_in_process(model, -(-samples // _CLASSES), _SAMPLE_BATCH)
        np.savez_compressed(out / f"{name}_samples.npz", images=each.images, labels=each.labels)
    return generated


def _edit(source: Digits, model: str) -> dict[str, np.ndarray]:
    """In-paint the bottom half of a held-out digit of each class, as its own class and as the next one."""
    pipeline = pipeline_for(model)
    first = [source.held_out[source.labels[source.held_out] == number][0] for number in range(_CLASSES)]
    digits = (source.images(np.array(first)) + 1) / 2
    mask = torch.zeros(digits.shape[-2:], dtype=torch.bool, device="cpu")
    mask[mask.shape[0] // 2 :] = True
    rows = {"held-out digits": digits, "the part to in-paint": torch.where(mask, 0.5, digits)}
    for title, shift in (("as its class", 0), ("as the next", 1)):
        labels = [(number + shift) % _CLASSES for number in range(_CLASSES)]
        rows[title] = pipeline.inpaint(digits, mask, labels, seed=0, output_type="pt").images
    return {title: to_uint8(images * 2 - 1) for title, images in rows.items()}


def _judge(source: Digits, vqvae: VQVAE, generated: dict[str, Generated]) -> dict[str, Any]:
    train, held_out = source.images(source.train), source.images(source.held_out)
    labels, real = source.labels[source.held_out], features(to_uint8(held_out))
    judge = DigitJudge(features(to_uint8(train)), source.labels[source.train], real, labels)
    reconstructed = torch.cat([vqvae.decode(vqvae.encode(images)) for images in held_out.split(64)])
    sets = {name: (features(each.images), each.labels) for name, each in generated.items()}
    sets |= {"real": (real, labels), "reconstructed": (features(to_uint8(reconstructed)), labels)}
    sampling = {
        name: {"images": len(each.labels), "seconds": each.seconds, "peak_bytes": each.peak_bytes}
        for name, each in generated.items()
    }
    quality = {name: asdict(judge.judge(*each)) for name, each in sets.items()}
    return {"quality": quality, "classifier_accuracy": judge.accuracy, "sampling": sampling}


def _attention_figures(model: MVAR) -> dict[str, Any]:
    pyramid, config = model.pyramid, model.config
    return {
        "tokens": pyramid.length,
        "sides": list(config.sides),
        "kernel_size": config.kernel_size,
        "dense_scales": config.dense_scales,
        "pairs_var": pyramid.causal_neighborhood().attended_pairs(),
        "pairs_mvar": pyramid.attended_pairs(),
    }
