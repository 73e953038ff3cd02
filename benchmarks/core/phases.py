"""Peak memory of a piece of work in a process of its own, phase by phase.

On a CPU: the kernel's high-water mark of the resident set above what was resident before the work began - torch, its thread pools and code
that a warm-up touched; on Linux the mark is set back between phases. On a GPU: torch's allocator, which knows its own peak.
`python -m benchmarks.core.phases '{"job": ..., ...}'` runs one job and prints a JSON object; `run` starts it and reads that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from mvar_models.environment import peak_resident_bytes, reset_peak_resident, resident_bytes


class Phases:
    """Bytes at the peak of each phase, above what was there at the start, and seconds. A phase ends where it is named."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peaks: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        warm_up(device)
        self.before = 0 if device.type == "cuda" else resident_bytes() or _peak()
        self._begin()

    def end(self, name: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[name] = time.perf_counter() - self.begun
        self.peaks[name] = (
            torch.cuda.max_memory_allocated() if self.device.type == "cuda" else _peak() - self.before
        )
        self._begin()

    def _begin(self) -> None:
        _reset(self.device)
        self.begun = time.perf_counter()

    def report(self) -> dict[str, Any]:
        """`peak_bytes` is the work's; making the weights, in float32 whatever their type, is the first phase and left out."""
        after = list(self.peaks.values())[1:]
        return {"peak_bytes": max(after), "peaks": self.peaks, "seconds": self.seconds}


def warm_up(device: torch.device) -> None:
    """Products, convolutions and their gradients once, so that libraries and thread pools are there."""
    for dtype in (torch.float32, torch.bfloat16):
        features = torch.randn((1, 8, 64, 64), device=device, dtype=dtype, requires_grad=True)
        filters = torch.randn((8, 8, 3, 3), device=device, dtype=dtype)
        out = torch.nn.functional.conv2d(features, filters).flatten(2)
        torch.nn.functional.scaled_dot_product_attention(out, out, out).sum().backward()


def _peak() -> int:
    peak = peak_resident_bytes()
    if peak is None:
        raise RuntimeError(f"{sys.platform} does not report the peak memory of a process")
    return peak


def _reset(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak_resident()


def run(job: str, **arguments: Any) -> dict[str, Any]:
    """A job in a fresh process; RuntimeError with the last line of what it said when it fails."""
    environment = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
    )
    command = [sys.executable, "-m", "benchmarks.core.phases", json.dumps({"job": job, **arguments})]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise RuntimeError(f"{job} failed: {said[-1] if said else f'exit status {done.returncode}'}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    from benchmarks.core import child_jobs as jobs

    arguments = json.loads(sys.argv[1])
    print(json.dumps(jobs.JOBS[arguments.pop("job")](**arguments)))


if __name__ == "__main__":
    main()
