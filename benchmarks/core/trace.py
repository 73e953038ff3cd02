"""Count what a piece of work asks of a device, from the operators that it dispatches.

Fake and meta tensors give the same counts as real ones, so a model of any size is counted in seconds, and
for a GPU without one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.core.activations import storage_key

# Operators that allocate or look at a tensor and launch nothing.
_NO_KERNEL = {
    "empty",
    "new_empty",
    "empty_like",
    "empty_strided",
    "new_empty_strided",
    "detach",
    "lift_fresh",
    "promote_types",
}
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "convolution"}
# What reads a value on the host or makes a shape that depends on values.
_READS_VALUES = {"_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "equal", "is_nonzero"}


@dataclass
class Trace:
    """What was dispatched.

    Attributes:
        kernels: Operators that launch at least one kernel each, by name.
        weight_bytes: Bytes of weights that products read.
        copies: Copies between devices, as "cpu to cuda".
        reads: Operators that wait for a value or give a shape that depends on values.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    weight_bytes: int = 0
    copies: list[str] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)


def trace(work: Callable[[], object], weights: Iterable[Tensor] = ()) -> Trace:
    """Run the work and count."""
    mode = _Tracer(weights)
    with mode:
        work()
    return mode.trace


class _Tracer(TorchDispatchMode):
    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.trace = Trace()
        self.weights = {storage_key(each): each.untyped_storage().nbytes() for each in weights}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in _READS_VALUES:
            self.trace.reads.append(name)
        out = func(*args, **(kwargs or {}))
        if func.is_view or name in _NO_KERNEL:
            return out
        self.trace.kernels[name] += 1
        read = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if name in _PRODUCTS:
            self.trace.weight_bytes += sum(self.weights.get(storage_key(each), 0) for each in read)
        for made in (each for each in tree_leaves(out) if isinstance(each, Tensor)):
            origins = {each.device.type for each in read} - {made.device.type}
            self.trace.copies += [f"{origin} to {made.device.type}" for origin in sorted(origins)]
        return out


def live_bytes(steps: Iterable[Callable[[], object]]) -> tuple[int, list[int]]:
    """Return the peak of the memory that the steps allocate, and what is left of it after each of them."""
    mode, left = _Allocations(), []
    with mode:
        for step in steps:
            step()
            left.append(mode.live())
    return mode.peak, left


class _Allocations(TorchDispatchMode):
    """Keeps account of the storages that operators return and that are still in use."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def live(self) -> int:
        self.storages = {key: entry for key, entry in self.storages.items() if not entry[0].expired()}
        return sum(size for _, size in self.storages.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            for made in (each for each in tree_leaves(out) if isinstance(each, Tensor)):
                storage = made.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
            self.peak = max(self.peak, self.live())
        return out
