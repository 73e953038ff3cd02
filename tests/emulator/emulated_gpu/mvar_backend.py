"""The project's triton backend on an emulated GPU."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import triton

import mvar_kernels.backends.triton as backend
from emulated_gpu.driver import EmulatedGPU
from emulated_gpu.driver import install as install_driver


def install(target: int | str, **options: Any) -> EmulatedGPU:
    """Make the backend take CPU tensors, compile them for a GPU, and run them here.

    Args:
        target: a compute capability such as 80 or 90, or "gfx942".
        options: `unit_warps` and `seed` of `driver.install`.

    Raises:
        RuntimeError: Triton was imported with TRITON_INTERPRET=1 and cannot compile.
    """
    modules = _modules()
    if any(getattr(module, "INTERPRETED", False) for module in modules):
        raise RuntimeError("the emulated GPU runs compiled kernels; unset TRITON_INTERPRET")
    _forget_compiled_kernels()
    architecture = target if isinstance(target, str) else f"sm_{target}"
    backend._interpreted = lambda: True  # asked only whether tensors on the CPU are taken
    for module in modules:
        if hasattr(module, "architecture_of"):
            module.architecture_of = lambda device: architecture
    shared = next(module.SHARED_BYTES for module in modules if hasattr(module, "SHARED_BYTES"))
    if isinstance(target, str):
        from emulated_amd.driver import install as install_amd

        return install_amd(target, shared[architecture], **options)
    return install_driver(target, shared[architecture], **options)


@contextmanager
def emulated(target: int | str, **options: Any) -> Iterator[EmulatedGPU]:
    """Inside, as after `install`; afterwards the backend is as it was."""
    before = [(backend, "_interpreted", backend._interpreted)]
    before += [(m, "architecture_of", m.architecture_of) for m in _modules() if hasattr(m, "architecture_of")]
    # `reset_active` would look for a real GPU.
    driver = triton.runtime.driver._active
    try:
        yield install(target, **options)
    finally:
        triton.runtime.driver._active = driver
        for module, name, value in before:
            setattr(module, name, value)
        _forget_compiled_kernels()


def _modules() -> list[Any]:
    names = [each.name for each in pkgutil.iter_modules(backend.__path__)]
    return [importlib.import_module(f"{backend.__name__}.{name}") for name in names]


def _forget_compiled_kernels() -> None:
    """Triton keeps a target per device number as long as a kernel lives, and every GPU has number 0 here."""
    for module in _modules():
        for kernel in vars(module).values():
            if isinstance(kernel, triton.JITFunction):
                kernel.device_caches.clear()
