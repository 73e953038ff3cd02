"""What this machine is: stated in every result."""

from __future__ import annotations

import os
import platform
import subprocess
from typing import Any

import torch

from mvar_models.environment import commit, processor


def describe(device: torch.device) -> dict[str, Any]:
    """Return device, driver, versions and commit."""
    import mvar_kernels

    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = "absent"
    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton_version,
        "mvar": mvar_kernels.__version__,
        "commit": commit(),
    }
    if device.type == "cuda":
        facts["driver"] = _driver_version() or "unknown"
        facts["memory"] = f"{torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB"
    else:
        facts["threads"] = torch.get_num_threads()
        facts["cores"] = os.cpu_count()
    return facts


def line(facts: dict[str, Any]) -> str:
    """Return the facts in one line, the device first."""
    return ", ".join(f"{name} {value}" if name != "device" else str(value) for name, value in facts.items())


def _driver_version() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else ""
