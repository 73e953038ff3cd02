"""What is kept from call to call: bounded, made apart from the modes of the caller, and cleared at once."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])

# Of a tensor without its elements, as measured.
_TENSOR_BYTES = 1 << 9

_clear: list[Callable[[], None]] = []


def clear_caches() -> None:
    """Free what `mvar_kernels` keeps between calls: tables, masks, scratch memory, and idle threads.

    Results never depend on it: the next calls make again what they need. Call it to give memory back after
    grids of many sizes.
    """
    for clear in _clear:
        clear()


def on_clear(clear: Callable[[], None]) -> Callable[[], None]:
    """Let `clear_caches` call a function."""
    _clear.append(clear)
    return clear


def remembered(entries: int) -> Callable[[F], F]:
    """Return `functools.lru_cache` for small results, which `clear_caches` clears."""

    def decorate(function: F) -> F:
        cached = functools.lru_cache(maxsize=entries)(function)
        on_clear(cached.cache_clear)
        return cached  # type: ignore[return-value]

    return decorate


def tables(most_bytes: int, check: Callable[..., None] = lambda *arguments: None) -> Callable[[F], F]:
    """Return a decorator that keeps the tensors that a function makes of hashable arguments.

    A thread of its own makes them. So they do not belong to what the caller is in: inference mode, a
    transform of `torch.func`, fake tensors, `torch.set_default_device`, or the memory of a CUDA graph.

    Args:
        most_bytes: what the latest used may take together, Python's objects included; a larger result is not
            kept.
        check: called with the arguments, by the caller, before something is made.
    """

    def decorate(function: F) -> F:
        kept = _Kept(most_bytes)
        on_clear(kept.clear)

        @functools.wraps(function)
        def cached(*arguments: Hashable) -> Any:
            found = kept.get(arguments)
            if found is None:
                check(*arguments)
                found = kept.put(arguments, _apart(function, arguments))
            return found

        cached.kept = kept  # type: ignore[attr-defined]
        return cached  # type: ignore[return-value]

    return decorate


def _apart(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()


class _Kept:
    """Results by their arguments, the latest used last."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.results: OrderedDict[tuple[Hashable, ...], tuple[int, Any]] = OrderedDict()
        self._forget_lock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget_lock)

    def _forget_lock(self) -> None:
        """Begin with a free lock, as a forked process does not have the thread that held the old one."""
        self.lock = threading.Lock()

    @property
    def held(self) -> int:
        return sum(size for size, _ in self.results.values())

    def get(self, key: tuple[Hashable, ...]) -> Any:
        with self.lock:
            if key not in self.results:
                return None
            self.results.move_to_end(key)
            return self.results[key][1]

    def put(self, key: tuple[Hashable, ...], result: Any) -> Any:
        size = _bytes_of(result, set())
        if size > self.most_bytes:
            return result
        with self.lock:
            self.results[key] = size, result
            while self.held > self.most_bytes:
                self.results.popitem(last=False)
        return result

    def clear(self) -> None:
        with self.lock:
            self.results.clear()


def _bytes_of(value: object, counted: set[int]) -> int:
    """Return what tensors, tuples and ranges take in this process, each object and each memory once."""
    if isinstance(value, Tensor):
        known, size = value.data_ptr(), value.nbytes + _TENSOR_BYTES
    else:
        known, size = id(value), sys.getsizeof(value)
    if known in counted:
        return 0
    counted.add(known)
    if isinstance(value, range):
        size += 2 * sys.getsizeof(value.stop)
    return size + (sum(_bytes_of(each, counted) for each in value) if isinstance(value, tuple) else 0)
