"""What this machine can do at most, measured: the floor that times are compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.core.cases import Case
from benchmarks.core.measure import Clock


@dataclass(frozen=True)
class Ceilings:
    """Measured peak rates.

    Attributes:
        copy: Bytes per second of a large copy, read and write counted.
        matmul: FLOP per second of a large matrix product, by type.
    """

    copy: float
    matmul: dict[torch.dtype, float]

    def floor(self, case: Case) -> float:
        """Return the least seconds a case can take: to move its bytes or compute its pairs."""
        return max(case.least_bytes / self.copy, case.flops / self.matmul[case.dtype])


def ceilings(device: torch.device, dtypes: set[torch.dtype]) -> Ceilings:
    """Measure copy and matrix products on a device."""
    clock = Clock(device)
    elements = (1 << 30) if device.type == "cuda" else (1 << 26)
    source = torch.zeros(elements, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    copy = 2 * elements / min(clock(lambda: target.copy_(source)) for _ in range(8))
    side = 8192 if device.type == "cuda" else 2048
    rates = {}
    for dtype in dtypes:
        matrix = torch.ones((side, side), dtype=dtype, device=device)
        rates[dtype] = 2 * side**3 / min(clock(lambda matrix=matrix: matrix @ matrix) for _ in range(5))
    return Ceilings(copy, rates)
