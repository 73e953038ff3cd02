"""Triton's driver for the emulated GPU.

`kernel[grid](...)` takes CPU tensors, compiles as ever, and runs here.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.cache import get_cache_manager

from emulated_gpu.counters import Counters
from emulated_gpu.counting import counted
from emulated_gpu.faults import NotEmulated
from emulated_gpu.number_types import UNSIGNED
from emulated_gpu.program import Code, Launch, launch

_SCALARS: dict[str, Any] = {
    "i1": np.int8, "i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64,
    "u32": np.uint32, "u64": np.uint64, "fp32": np.float32,
}  # fmt: skip


@functools.cache
def _translated(text: str) -> Code:
    return Code(text)


class Launcher:
    """What Triton calls to launch one compiled kernel.

    Attributes:
        text: the PTX.
        code: what runs; a test may replace it by a mutant.
    """

    def __init__(self, source: Any, metadata: Any) -> None:
        self.metadata = metadata
        self.kinds, self.names = list(source.signature.values()), list(source.signature)
        files = get_cache_manager(metadata.hash).get_group(f"{metadata.name}.json")
        self.text = Path(files[f"{metadata.name}.ptx"]).read_text()
        self.code = _translated(self.text)
        active().launchers.append(self)

    def __call__(
        self, x: int, y: int, z: int, stream: int, function: Any, packed: Any, launch_metadata: Any,
        enter: Any, leave: Any, *values: Any,
    ) -> None:  # fmt: skip
        scratch = self.metadata.global_scratch_size or getattr(self.metadata, "profile_scratch_size", 0)
        if (y, z) != (1, 1) or scratch or self.metadata.num_ctas != 1:
            raise NotEmulated("grids of several dimensions, scratch memory, clusters")
        arguments, tensors, names = [], [], []
        for name, kind, value in zip(self.names, self.kinds, values, strict=True):
            if isinstance(value, torch.Tensor):
                tensors.append(value)
                names.append(name)
                arguments.append(np.uint64(value.data_ptr()))
            elif kind != "constexpr":
                number = _SCALARS[kind](value)
                arguments.append(number.view(UNSIGNED[8 * number.dtype.itemsize]))
        # Triton adds pointers to scratch memory that these kernels do not use.
        arguments += [np.uint64(0)] * (len(self.code.kernel.parameters) - len(arguments))
        gpu = active()
        code, counters = self.code, None
        if gpu.counts:
            code, counters = counted(code.text), Counters(code.kernel, names)
        gpu.launches.append(
            launch(code, x, arguments, tensors, self.metadata.shared, gpu.unit_warps, gpu.seed, counters)
        )


class _Utilities:
    """What Triton asks about the device."""

    @staticmethod
    def get_device_properties(device: int) -> dict[str, int]:
        return {
            "max_shared_mem": active().max_shared, "max_num_regs": 65536, "warpSize": 32,
            "multiprocessor_count": 1, "sm_clock_rate": 1, "mem_clock_rate": 1, "mem_bus_width": 1,
        }  # fmt: skip

    @staticmethod
    def load_binary(name: str, binary: bytes, shared: int, device: int) -> tuple[Any, ...]:
        return object(), object(), 0, 0, 1024


class EmulatedGPU(DriverBase):
    """An NVIDIA GPU of one compute capability.

    Attributes:
        capability: such as 90.
        max_shared: bytes of shared memory that a program may have.
        unit_warps, seed: see `program.launch`.
        counts: whether launches are counted (see `counters`), which takes longer.
        launchers: of every kernel that was compiled, in order.
        launches: of every launch, in order.
    """

    launcher_cls = Launcher
    utils = _Utilities()

    def __init__(self, capability: int, max_shared: int, unit_warps: int, seed: int) -> None:
        self.capability, self.max_shared, self.unit_warps, self.seed = (
            capability,
            max_shared,
            unit_warps,
            seed,
        )
        self.counts = False
        self.launchers: list[Launcher] = []
        self.launches: list[Launch] = []

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, kind: str) -> str:
        raise RuntimeError("the emulated GPU has no C++ launcher")

    def get_benchmarker(self) -> Any:
        raise RuntimeError("the emulated GPU has no clock")


_installed: list[EmulatedGPU] = []


def active() -> EmulatedGPU:
    """The GPU that was installed last."""
    return _installed[-1]


def install(capability: int, max_shared: int = 232_448, unit_warps: int = 1, seed: int = 0) -> EmulatedGPU:
    """Make an emulated GPU the one that Triton compiles for and launches on."""
    _installed.append(EmulatedGPU(capability, max_shared, unit_warps, seed))
    triton.runtime.driver.set_active(active())
    return active()
