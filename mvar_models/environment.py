"""Record versions, machine and commit, on which a result depends, and measure this process's memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from mvar_kernels import __version__

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_GIT_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR")


def environment() -> dict[str, Any]:
    """Return versions, machine and commit, as run folders and reports record them."""
    return {
        "mvar": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def versions() -> dict[str, str]:
    """Return the facts that all processes of a run must share: versions, and the commit where it is known."""
    known = environment()
    facts = {name: str(known[name]) for name in ("mvar", "torch", "python")}
    return facts if known["commit"].startswith("unknown") else {**facts, "commit": known["commit"]}


def commit() -> str:
    """Return the git commit of this checkout, with "-dirty" if it has changes, or why there is none.

    MVAR_COMMIT takes precedence, for machines that received the files without their git folder.
    """
    given = os.environ.get("MVAR_COMMIT")
    if given:
        return given
    # Git's own variables, set inside its hooks, would name another repository.
    plain = {name: value for name, value in os.environ.items() if name not in _GIT_VARIABLES}
    here = Path(__file__)

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=plain)

    try:
        # An installed package may lie inside somebody's repository, which does not track it.
        tracked = git("ls-files", "--error-unmatch", "--", here.name)
        done = git("describe", "--always", "--dirty", "--abbrev=12")
    except OSError:
        return "unknown (no git)"
    is_checkout = tracked.returncode == 0 and done.returncode == 0
    return done.stdout.strip() if is_checkout else "unknown (installed, not a checkout)"


def processor() -> str:
    """Return the name of the CPU."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def resident_bytes() -> int | None:
    """Return the memory that is resident now, or None if the system does not say."""
    return _status("VmRSS")


def peak_resident_bytes() -> int | None:
    """Return the peak of the resident memory, or None if the system does not say."""
    # On Linux, what getrusage reports for a child process starts at the peak of its parent; VmHWM does not.
    peak = _status("VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def peak_memory_gb(device: torch.device) -> float | None:
    """Return peak memory in 10^9 bytes, or None where the system does not report it.

    On a GPU it is what PyTorch allocated there, on a CPU the resident memory of this process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = peak_resident_bytes()
    return None if peak is None else peak / 1e9


def reset_peak_resident() -> None:
    """Set the peak back to what is resident now.

    Only Linux can; elsewhere the peak is that of the whole process.
    """
    if _CLEAR_REFS.exists():
        _CLEAR_REFS.write_text("5")  # see proc(5)


def _status(name: str) -> int | None:
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None
