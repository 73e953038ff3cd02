"""Generates images in a process of its own, so that time and peak memory are not those of anything else.

python -m mvar_models.demo.draw --model FOLDER --per-class 100 --batch-size 100 --out FILE.npz
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from mvar_models.environment import peak_resident_bytes
from mvar_models.pipeline import pipeline_for

_SEED = 1234


@dataclass(frozen=True)
class Drawn:
    """Generated images and what they cost.

    Attributes:
        images: (n, R, R, 3) uint8.
        labels: (n,) their classes.
        seconds: Time for all of them.
        peak_bytes: How much generating them raised the peak memory of the process.
    """

    images: np.ndarray
    labels: np.ndarray
    seconds: float
    peak_bytes: int


def draw_in_process(model: str, per_class: int, batch_size: int, out: Path) -> Drawn:
    """Run this module on a model.

    Args:
        model: Zoo name or folder.
        per_class: Images per class.
        batch_size: Images at a time.
        out: Where the images are kept, as an .npz file.

    Raises:
        RuntimeError: the process failed; the message has the last line that it printed.
    """
    options = {"model": model, "per-class": per_class, "batch-size": batch_size, "out": out}
    command = [sys.executable, "-m", "mvar_models.demo.draw"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        printed = done.stderr.strip().splitlines()
        raise RuntimeError(f"drawing from {model} failed: {printed[-1] if printed else 'no message'}")
    figures = json.loads(done.stdout)
    with np.load(out) as arrays:
        return Drawn(arrays["images"], arrays["labels"], **figures)


@click.command()
@click.option("--model", required=True)
@click.option("--per-class", required=True, type=int)
@click.option("--batch-size", required=True, type=int)
@click.option("--out", required=True, type=click.Path(path_type=Path))
def main(model: str, per_class: int, batch_size: int, out: Path) -> None:
    """Generate images of every class, and print seconds and peak memory as JSON."""
    pipeline = pipeline_for(model)
    labels = np.repeat(np.arange(pipeline.model.config.num_classes), per_class)
    # The first call initialises libraries, whose time and memory are not the model's.
    pipeline(labels[:1].tolist(), seed=0, output_type="np")
    before, begun = peak_resident_bytes() or 0, time.perf_counter()
    # In batches, on which the memory of a KV cache depends.
    images = pipeline(
        labels.tolist(), seed=_SEED, output_type="np", batch_size=batch_size, batch_invariant=False
    )
    seconds = time.perf_counter() - begun
    np.savez_compressed(out, images=images, labels=labels)
    click.echo(json.dumps({"seconds": seconds, "peak_bytes": (peak_resident_bytes() or 0) - before}))


if __name__ == "__main__":
    main()
