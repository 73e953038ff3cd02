"""What this machine is and what it can do: named in every result, and the ceilings that times are compared with."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.core.cases import Case
from benchmarks.core.measure import Clock
from mvar_models import environment


def describe(device: torch.device) -> dict[str, Any]:
    """Device, driver, versions and commit."""
    import mvar_kernels

    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = "absent"
    facts: dict[str, Any] = {
        "device": _device_name(device),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton_version,
        "mvar": mvar_kernels.__version__,
        "commit": environment.commit(),
    }
    if device.type == "cuda":
        facts["driver"] = (
            _run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "unknown"
        )
        facts["memory"] = f"{torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB"
    else:
        facts["threads"] = torch.get_num_threads()
        facts["cores"] = os.cpu_count()
    return facts


def line(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" if name != "device" else str(value) for name, value in facts.items())


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else environment.processor()


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else ""


@dataclass(frozen=True)
class Ceilings:
    """Measured: bytes a second of a large copy (read and write counted), FLOP a second of a large product by type."""

    copy: float
    matmul: dict[torch.dtype, float]

    def floor(self, case: Case) -> float:
        """Seconds that moving the case's bytes or computing its attended pairs takes at least, whichever is more."""
        return max(case.least_bytes / self.copy, case.flops / self.matmul[case.dtype])


def ceilings(device: torch.device, dtypes: set[torch.dtype]) -> Ceilings:
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
