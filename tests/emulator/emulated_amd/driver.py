"""Triton's driver for the emulated AMD GPU."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from emulated_gpu import driver
from emulated_gpu.faults import NotEmulated
from emulated_gpu.global_memory import Global
from emulated_gpu.program import Launch
from triton.backends.compiler import GPUTarget
from triton.runtime.cache import get_cache_manager

from emulated_amd.parse import Code
from emulated_amd.workgroup import Workgroup

_WAVE = 64


@functools.cache
def _translated(text: str) -> Code:
    return Code(text)


class Launcher:
    """What Triton calls to launch one compiled kernel."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.metadata, self.kinds = metadata, list(source.signature.values())
        files = get_cache_manager(metadata.hash).get_group(f"{metadata.name}.json")
        self.code = _translated(Path(files[f"{metadata.name}.llir"]).read_text())

    def __call__(
        self, x: int, y: int, z: int, stream: int, function: Any, packed: Any, launch_metadata: Any,
        enter: Any, leave: Any, *values: Any,
    ) -> None:  # fmt: skip
        if (y, z) != (1, 1) or getattr(self.metadata, "profile_scratch_size", 0):
            raise NotEmulated("grids of several dimensions, scratch memory")
        given = [value for kind, value in zip(self.kinds, values, strict=True) if kind != "constexpr"]
        tensors = [value for value in given if isinstance(value, torch.Tensor)]
        arguments = [value.data_ptr() if isinstance(value, torch.Tensor) else value for value in given]
        # Triton adds pointers to scratch memory that these kernels do not use.
        arguments += [0] * (len(self.code.arguments) - len(arguments))
        start, memory = time.perf_counter(), Global(tensors)
        with np.errstate(all="ignore"):
            for number in range(x):
                memory.program = number
                size = _WAVE * self.metadata.num_warps
                Workgroup(self.code, number, arguments, size, memory, self.metadata.shared).run()
        launch = Launch(self.metadata.name, x, 0, time.perf_counter() - start, 0, 0)
        driver.active().launches.append(launch)


class EmulatedAMD(driver.EmulatedGPU):
    """An AMD GPU of one architecture, such as "gfx942"."""

    launcher_cls = Launcher

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("hip", self.capability, _WAVE)


def install(architecture: str, max_shared: int, unit_warps: int = 0, seed: int = 0) -> EmulatedAMD:
    """Make an emulated AMD GPU the one that Triton compiles for and launches on."""
    gpu = EmulatedAMD(architecture, max_shared, unit_warps, seed)
    driver._installed.append(gpu)
    triton.runtime.driver.set_active(gpu)
    return gpu
