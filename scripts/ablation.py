"""What each Markov assumption costs and buys: `python -m scripts.ablation --data D --vqvae V --out O`.

The arms are transformers of one shape, trained from scratch for equal steps: VAR, MVAR with dense windows
(Markov over scales alone), with windows of 7 and of 3, with the preceding scale in its softmax, and
Markov-VAR. Every arm and seed is a run folder of its own. A run that was stopped is continued by the next
call, and one that is complete leaves a row, which is kept; --arms and --seeds choose what a call trains. The
table and the plot are rewritten after each row. Step times of different arms compare only on a quiet machine.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.core.activations import held_per_image
from mvar_models.checkpoints.checkpoint import open_checkpoint
from mvar_models.config import released_dense_scales
from mvar_models.files import claim, replacing, write_text
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.networks.vqvae import VQVAE
from mvar_models.optional import require
from mvar_models.pipeline import model_for
from mvar_models.training.runs import start_transformer_run, train_transformer

# Windows of the arms; None stands for every scale dense.
ARMS: dict[str, dict[str, Any]] = {
    "var": {"arch": "var"},
    "dense": {"arch": "mvar", "kernel_size": 7, "dense_scales": None},
    "k7": {"arch": "mvar", "kernel_size": 7},
    "k3": {"arch": "mvar", "kernel_size": 3},
    "k7-adjacent": {"arch": "mvar", "kernel_size": 7, "previous_scales": 1},
    "markov-var": {"arch": "markov-var"},
}
# Other ways to train the arm k7. They are trained by name alone.
TRIALS: dict[str, dict[str, Any]] = {
    "k7-density": {**ARMS["k7"], "scale_weights": "density"},
    "k7-drop-path": {**ARMS["k7"], "drop_path": 0.1},
}
ROW = "row.json"
_SHARED = ("data", "vqvae", "steps", "batch_size", "lr", "depth", "width", "num_heads", "dense_scales")
_EVALUATED = ("evaluate_features", "evaluate_images")


def settings_of(arm: str, sides: Sequence[int], dense_scales: int | None) -> dict[str, Any]:
    """Return the training settings in which an arm differs from the others.

    Raises:
        SystemExit: the arm has windows, but no scale for them.
    """
    settings = dict((ARMS | TRIALS)[arm])
    if settings["arch"] == "mvar":
        fewer = released_dense_scales(sides) if dense_scales is None else dense_scales
        if fewer >= len(sides) and "dense_scales" not in settings:
            raise SystemExit(f"{arm}: all {len(sides)} scales are dense; pass fewer --dense-scales")
        settings["dense_scales"] = len(sides) if "dense_scales" in settings else fewer
    return settings


def train(
    arm: str, seed: int, shared: dict[str, Any], evaluated: dict[str, Any], out: Path
) -> dict[str, Any]:
    """Train an arm to its end, or return the row that it left.

    Args:
        arm: A row of `ARMS` or `TRIALS`.
        seed: Seed of weights and order.
        shared: Settings that all arms have in common, by the names of `_SHARED`.
        evaluated: How the Frechet distance is measured.
        out: Folder of the ablation.
    """
    run = out / f"{arm}-{seed}"
    row = run / ROW
    if row.exists():
        kept: dict[str, Any] = json.loads(row.read_text(encoding="utf-8"))
        return kept
    if any((run / "checkpoints").glob("step-*")):
        begun = start_transformer_run(resume=str(run))
    else:
        common = {
            name: value for name, value in shared.items() if name != "dense_scales" and value is not None
        }
        sides = VQVAE.from_pretrained(shared["vqvae"]).config.sides
        begun = start_transformer_run(
            **common,
            **settings_of(arm, sides, shared["dense_scales"]),
            **evaluated,
            out=str(run),
            seed=seed,
            evaluate_every=shared["steps"],
            save_every=max(1, shared["steps"] // 10),
        )
    results = train_transformer(begun)
    found = {
        "arm": arm,
        "seed": seed,
        "steps": shared["steps"],
        "nats": results["val_loss"],
        "nats_per_scale": results["val_loss_per_scale"],
        "fd": results["fd"],
        "features": begun.settings.evaluate_features,
        **costs(model_for(open_checkpoint(begun.folder.model))),
        "step_ms": step_milliseconds(run / "metrics.jsonl", shared["batch_size"]),
    }
    write_text(row, json.dumps(found, indent=2) + "\n")
    return found


def costs(model: ScaleTransformer) -> dict[str, int]:
    """Return what an image costs: pairs in attention, and bytes kept for backward in float32."""
    import torch

    scales = range(len(model.config.sides))
    model.train()
    return {
        "parameters": model.num_parameters(),
        "attended_pairs": model.neighborhood(scales).attended_pairs(),
        "activation_bytes": held_per_image(model, model.loss, torch.float32).bytes,
    }


def step_milliseconds(metrics: Path, batch_size: int) -> float:
    """Return the median time of a step."""
    lines = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
    speeds = [line["images_per_second"] for line in lines if "images_per_second" in line]
    return 1000 * batch_size / statistics.median(speeds)


def rows_in(out: Path) -> list[dict[str, Any]]:
    """Return the rows that stand, in the order of the arms."""
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in out.glob(f"*/{ROW}")]
    return sorted(rows, key=lambda row: ([*ARMS, *TRIALS].index(row["arm"]), row["seed"]))


def write_tables(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Write every row to ablation.csv, and the means over seeds to ablation.md."""
    scales = range(len(rows[0]["nats_per_scale"]))
    names = ["arm", "seed", "steps", "nats", *(f"nats_{scale}" for scale in scales), "fd", "features"]
    names += ["parameters", "attended_pairs", "activation_bytes", "step_ms"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        flat = {**row, **{f"nats_{scale}": row["nats_per_scale"][scale] for scale in scales}}
        writer.writerow([flat[name] for name in names])
    write_text(out / "ablation.csv", text.getvalue())
    lines = [
        f"Means over seeds, +- their standard deviation; {rows[0]['steps']:,} steps. Nats are per code, held"
        f" out; FD is of {rows[0]['features']} features.",
        "",
        "| arm | seeds | nats | nats of each scale | FD | attended pairs | MB kept per image | ms a step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, group in _by_arm(rows).items():
        each = [statistics.mean(row["nats_per_scale"][scale] for row in group) for scale in scales]
        cells = [
            arm,
            str(len(group)),
            _spread([row["nats"] for row in group], 4),
            " ".join(f"{nats:.2f}" for nats in each),
            _spread([row["fd"] for row in group], 2),
            f"{group[0]['attended_pairs']:,}",
            f"{group[0]['activation_bytes'] / 1e6:.2f}",
            f"{statistics.median(row['step_ms'] for row in group):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    write_text(out / "ablation.md", "\n".join(lines) + "\n")


def plot(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Plot nats over the VAR's on each scale, and FD over attended pairs; needs matplotlib. Trials have the
    pairs of their arm and are left out, unless there is nothing else.
    """
    rows = [row for row in rows if row["arm"] in ARMS] or rows
    require("matplotlib", "demo").use("Agg")
    plt = require("matplotlib.pyplot", "demo")
    groups = _by_arm(rows)
    base = next(iter(groups))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4))
    scales = range(len(rows[0]["nats_per_scale"]))

    def means(group: Sequence[dict[str, Any]]) -> list[float]:
        return [statistics.mean(row["nats_per_scale"][scale] for row in group) for scale in scales]

    for arm, group in groups.items():
        differences = [one - other for one, other in zip(means(group), means(groups[base]))]
        (line,) = left.plot(scales, differences, marker="o", label=arm)
        pairs = [row["attended_pairs"] for row in group]
        right.scatter(pairs, [row["fd"] for row in group], color=line.get_color(), label=arm)
    left.set_xlabel("scale")
    left.set_ylabel(f"held-out nats per code over those of {base}")
    left.legend()
    right.set_xscale("log")
    # Matplotlib's own labels of a range this narrow overlap.
    ticker = require("matplotlib.ticker", "demo")
    right.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    right.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    right.xaxis.set_minor_formatter(ticker.NullFormatter())
    right.set_xlabel("attended pairs")
    right.set_ylabel(f"FD of {rows[0]['features']} features")
    figure.tight_layout()
    with replacing(out / "ablation.png") as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def _by_arm(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return {arm: [row for row in rows if row["arm"] == arm] for arm in dict.fromkeys(r["arm"] for r in rows)}


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} +- {statistics.stdev(values):.{digits}f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, help="digits, a folder of images, or one of codes")
    parser.add_argument("--vqvae", required=True, help="VQVAE of the codes")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs, the table and the plot")
    parser.add_argument(
        "--arms", default=",".join(ARMS), help=f"of {','.join(ARMS)} (default: all); or {','.join(TRIALS)}"
    )
    parser.add_argument("--seeds", default="0,1", help="seeds to train now (default: 0,1)")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--width", type=int, default=128, help="Markov-VAR takes multiples of 128")
    parser.add_argument("--num-heads", type=int, default=4)
    parser.add_argument("--dense-scales", type=int, help="of the arms with windows (default: as released)")
    parser.add_argument("--evaluate-features", default="efficientnet-lite0")
    parser.add_argument("--evaluate-images", type=int, default=1000)
    options = vars(parser.parse_args(arguments))
    out, arms = options["out"], options["arms"].split(",")
    unknown = [arm for arm in arms if arm not in (ARMS | TRIALS)]
    if unknown:
        parser.error(f"--arms must be of {', '.join(ARMS | TRIALS)}, got {', '.join(unknown)}")
    shared = {name: options[name] for name in _SHARED}
    evaluated = {name: options[name] for name in _EVALUATED}
    # Rows of other settings have no place in one table.
    claim(out / "settings.json", {**shared, **evaluated}, "an ablation")
    for seed in map(int, options["seeds"].split(",")):
        for arm in arms:
            row = train(arm, seed, shared, evaluated, out)
            print(f"{arm}, seed {seed}: {row['nats']:.4f} nats per code, FD {row['fd']:.2f}", flush=True)
            rows = rows_in(out)
            write_tables(rows, out)
            plot(rows, out)
    print(f"{out / 'ablation.md'}, ablation.csv and ablation.png")


if __name__ == "__main__":
    main()
