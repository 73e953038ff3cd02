"""Peak memory of a piece of work, phase by phase, in a process of its own.

On a CPU: the kernel's high-water mark of the resident set, above what was resident before the work began
(torch, its thread pools, code that a warm-up touched). Linux can reset the mark between phases; elsewhere
peaks accumulate. On a GPU: the peak of torch's allocator.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from mvar_models.environment import peak_resident_bytes, reset_peak_resident, resident_bytes


class Phases:
    """Record each phase's peak bytes above the start, and its seconds. A phase is named where it ends."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peaks: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        warm_up(device)
        # Where the system does not say what is resident now, its peak so far is the closest figure.
        self.before = 0 if device.type == "cuda" else resident_bytes() or _peak_resident()
        self._start_phase()

    def end(self, name: str) -> None:
        """End the current phase and begin the next."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated()
        else:
            peak = _peak_resident() - self.before
        self.seconds[name] = time.perf_counter() - self._started
        self.peaks[name] = peak
        self._start_phase()

    def _start_phase(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            reset_peak_resident()
        self._started = time.perf_counter()

    def report(self) -> dict[str, Any]:
        """Return the peaks and seconds; `peak_bytes` is the largest peak after the first phase.

        The first phase draws random weights, in float32 whatever their final type, which is not the work's
        peak.
        """
        peaks = list(self.peaks.values())
        return {"peak_bytes": max(peaks[1:]), "peaks": self.peaks, "seconds": self.seconds}


def warm_up(device: torch.device) -> None:
    """Run products, convolutions and their gradients once, so that libraries and thread pools are loaded."""
    for dtype in (torch.float32, torch.bfloat16):
        features = torch.randn((1, 8, 64, 64), device=device, dtype=dtype, requires_grad=True)
        filters = torch.randn((8, 8, 3, 3), device=device, dtype=dtype)
        out = torch.nn.functional.conv2d(features, filters).flatten(2)
        torch.nn.functional.scaled_dot_product_attention(out, out, out).sum().backward()


def _peak_resident() -> int:
    peak = peak_resident_bytes()
    if peak is None:
        raise RuntimeError("this system does not report the peak memory of a process")
    return peak
