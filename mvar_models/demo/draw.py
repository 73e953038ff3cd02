"""Draw pictures in a process of their own, so that time and peak memory are of nothing else.

python -m mvar_models.demo.draw --model FOLDER --per-class 100 --out FILE.npz
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

_SEED = 1234


@dataclass(frozen=True)
class Drawn:
    """images (n, R, R, 3) uint8 and labels (n,); seconds for all of them; bytes by which drawing raised the process's peak memory."""

    images: np.ndarray
    labels: np.ndarray
    seconds: float
    peak_bytes: int


def draw_in_process(model: str, per_class: int, batch_size: int, out: Path) -> Drawn:
    """Run this module on a zoo name or folder; RuntimeError with its last line if it fails."""
    command = [sys.executable, "-m", "mvar_models.demo.draw", "--model", model, "--per-class", str(per_class)]
    done = subprocess.run(
        [*command, "--batch-size", str(batch_size), "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            f"drawing from {model} failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'no message'}"
        )
    figures = json.loads(done.stdout)
    with np.load(out) as arrays:
        return Drawn(arrays["images"], arrays["labels"], **figures)


@click.command()
@click.option("--model", required=True)
@click.option("--per-class", required=True, type=int)
@click.option("--batch-size", required=True, type=int)
@click.option("--out", required=True, type=click.Path(path_type=Path))
def main(model: str, per_class: int, batch_size: int, out: Path) -> None:
    from mvar_models.pipeline import pipeline_for

    pipeline = pipeline_for(model)
    labels = np.repeat(np.arange(pipeline.model.config.num_classes), per_class)
    pipeline(
        labels[:1].tolist(), seed=0, output_type="np"
    )  # first-call work is neither the model's time nor its memory
    before, begun = peak_resident_bytes() or 0, time.perf_counter()
    # As a batch, on which the memory of a KV cache depends; one by one the bits would not depend on it, which nobody needs here.
    images = pipeline(
        labels.tolist(), seed=_SEED, output_type="np", batch_size=batch_size, batch_invariant=False
    )
    seconds = time.perf_counter() - begun
    np.savez_compressed(out, images=images, labels=labels)
    click.echo(json.dumps({"seconds": seconds, "peak_bytes": (peak_resident_bytes() or 0) - before}))


if __name__ == "__main__":
    main()
