"""The main job on embedded data: fine-tune the embedded VAR into MVAR on handwritten digits, compare the two, write a report.

mvar demo --out demo_out        (or `make demo`)
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mvar_models.data.digits import Digits
from mvar_models.demo import plots, report
from mvar_models.demo.draw import draw_in_process
from mvar_models.demo.quality import DigitJudge, features
from mvar_models.environment import environment
from mvar_models.images import to_uint8
from mvar_models.networks.mvar import MVAR
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.networks.var import VAR
from mvar_models.networks.vqvae import VQVAE
from mvar_models.optional import require
from mvar_models.tokens.encode import tokenize_split
from mvar_models.tokens.token_set import TokenSet
from mvar_models.training.runs import start_transformer_run, train_transformer
from mvar_models.training.settings import TransformerSettings
from mvar_models.training.transformer_task import TransformerTask

KERNEL_SIZE = 3
DENSE_SCALES = 3
# Of equal work (12,800 pictures), 800 steps of 16 reached a held-out cross-entropy of 2.170, 400 steps of 32 no better than 2.190 at any of
# the rates 1e-3, 2e-3, 3e-3; the embedded VAR has 2.161.
STEPS = 700
_VALIDATE_EVERY = 100
_LR = 1.5e-3
_BATCH_SIZE = 16
_COPIES = 12
_DRAW_BATCH = 100
_COLUMNS = 8


def run_demo(out: Path, steps: int | None = None, samples: int = 1000) -> Iterator[str]:
    """Do everything, yielding lines to print as there is something to say; the last ones say where to look and what was found."""
    begun = time.perf_counter()
    steps = steps or STEPS
    out.mkdir(parents=True, exist_ok=True)
    runs = out / "runs"
    shutil.rmtree(runs, ignore_errors=True)  # of an earlier demo; nothing else is kept there

    vqvae, var = VQVAE.from_pretrained("vae-digits"), VAR.from_pretrained("var-digits")
    source = Digits(vqvae.config.resolution)
    train, held_out = source.train, source.held_out
    yield f"{len(train)} training and {len(held_out)} held-out digits of {len(source)}; making codes of {_COPIES} light variants of each ..."
    tokens = tokenize_split(vqvae, source, _COPIES, seed=0)

    untuned = MVAR.from_var(var, KERNEL_SIZE, DENSE_SCALES)
    results: dict[str, Any] = {
        "validation": {
            "var": _validate(var, vqvae, tokens),
            "mvar_untuned": _validate(untuned, vqvae, tokens),
        }
    }
    yield f"embedded VAR: held-out cross-entropy {results['validation']['var']['val_loss']:.4f} nats a code"
    yield f"the same weights with MVAR's windows, untuned: {results['validation']['mvar_untuned']['val_loss']:.4f}"

    curves = {}
    for name, arch in (("mvar", "mvar"), ("var_control", "var")):
        yield f"{'fine-tuning into MVAR' if arch == 'mvar' else 'control: VAR trained on'} for {steps} steps ..."
        results["validation"][name], curves[name] = _train(runs / name, arch, steps, tokens)
    results["steps"] = steps
    results["steps_to_gate"] = _steps_to_gate(
        curves["mvar"]["validations"], results["validation"]["var"]["val_loss"]
    )

    yield f"drawing {samples} digits from each model and judging them ..."
    drawn = _draw(out, runs, samples)
    results.update(_judge(source, train, held_out, vqvae, drawn))
    results["attention"] = _attention_figures(untuned)
    results["seconds"] = time.perf_counter() - begun
    results["environment"] = environment()

    names = source.class_names
    plots.samples(
        out / "samples.png", {"VAR": drawn["var"].images, "MVAR": drawn["mvar"].images}, _COLUMNS, names
    )
    validation = results["validation"]
    plots.training(
        out / "training.png",
        {"MVAR, fine-tuned": curves["mvar"]["losses"], "VAR, trained on": curves["var_control"]["losses"]},
        {
            title: validation[name]["val_loss_per_scale"]
            for title, name in (("VAR", "var"), ("MVAR untuned", "mvar_untuned"), ("MVAR fine-tuned", "mvar"))
        },
        vqvae.config.sides,
        validation["var"]["val_loss"],
    )
    plots.attention(out / "attention.png", untuned.pyramid)
    report.write(out, results, vqvae.config.sides)
    yield from report.summary(out, results)


def _validate(model: ScaleTransformer, vqvae: VQVAE, tokens: tuple[TokenSet, TokenSet]) -> dict[str, Any]:
    return TransformerTask(model, vqvae, *tokens, TransformerSettings(data="digits", out="")).validate()


def _train(
    folder: Path, arch: str, steps: int, tokens: tuple[TokenSet, TokenSet]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both kinds of training differ in the architecture alone."""
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
    with require("tqdm", "demo").tqdm(total=steps, unit="step", dynamic_ncols=True) as bar:

        def show(values: dict[str, Any]) -> None:
            bar.update(1)
            bar.set_postfix(
                {name: f"{values[name]:.3f}" for name in ("loss", "val_loss") if name in values},
                refresh=False,
            )

        result = train_transformer(run, show, tokens)
    lines = run.folder.metrics()
    curve = {
        "losses": [line["loss"] for line in lines if "loss" in line],
        "validations": [(line["step"], line["val_loss"]) for line in lines if "val_loss" in line],
    }
    return {**result, "seconds": time.perf_counter() - begun}, curve


def _steps_to_gate(validations: list[tuple[int, float]], target: float) -> int | None:
    """First validated step at which the cross-entropy is within the gate of VAR's and stays there."""
    reached = None
    for step, loss in validations:
        within = loss <= target + report.LOSS_GATE
        reached = (reached or step) if within else None
    return reached


def _draw(out: Path, runs: Path, samples: int) -> dict[str, Any]:
    per_class = -(-samples // 10)
    models = {"var": "var-digits", "mvar": str(runs / "mvar" / "model")}
    return {
        name: draw_in_process(model, per_class, _DRAW_BATCH, out / f"{name}_samples.npz")
        for name, model in models.items()
    }


def _judge(
    source: Digits, train: np.ndarray, val: np.ndarray, vqvae: VQVAE, drawn: dict[str, Any]
) -> dict[str, Any]:
    real = {"train": to_uint8(source.images(train)), "val": to_uint8(source.images(val))}
    judge = DigitJudge(
        features(real["train"]), source.labels[train], features(real["val"]), source.labels[val]
    )
    reconstructed = torch.cat([vqvae.decode(vqvae.encode(images)) for images in source.images(val).split(64)])
    quality = {name: judge.judge(features(d.images), d.labels).to_dict() for name, d in drawn.items()}
    quality["real"] = judge.judge(features(real["val"]), source.labels[val]).to_dict()
    quality["reconstructed"] = judge.judge(features(to_uint8(reconstructed)), source.labels[val]).to_dict()
    sampling = {
        name: {"images": len(d.labels), "seconds": d.seconds, "peak_bytes": d.peak_bytes}
        for name, d in drawn.items()
    }
    return {"quality": quality, "classifier_accuracy": judge.accuracy, "sampling": sampling}


def _attention_figures(model: MVAR) -> dict[str, Any]:
    pyramid = model.pyramid
    causal, windows = pyramid.causal_neighborhood().attended_pairs(), pyramid.attended_pairs()
    return {
        "tokens": pyramid.length,
        "sides": list(model.config.sides),
        "kernel_size": model.config.kernel_size,
        "dense_scales": model.config.dense_scales,
        "pairs_var": causal,
        "pairs_mvar": windows,
    }
