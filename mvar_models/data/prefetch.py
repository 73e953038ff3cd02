"""Read the next batch while the current one is used."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Key = TypeVar("Key", int, tuple[int, ...])
Value = TypeVar("Value")


class Prefetcher(Generic[Key, Value]):
    """Calls `read(key)` in a thread of its own for keys announced ahead.

    A torch DataLoader would do the same in worker processes, but then `ImageSource.unreadable` would be
    filled in their copies of the source, and images would be sent between processes that threads share.

    Args:
        read: what to call for a key. Keys are asked for in ascending order.
    """

    def __init__(self, read: Callable[[Key], Value]) -> None:
        self._read: Callable[[Key], Value] = read
        self._pending: dict[Key, Future[Value]] = {}
        self._thread = ThreadPoolExecutor(1)

    def get(self, key: Key, following: Key | None = None) -> Value:
        """Return `read(key)`, and start reading the key that will be asked for later."""
        future = self._pending.pop(key, None)
        value = self._read(key) if future is None else future.result()
        # Keys that were passed over, as after a jump to another step, would keep their batch forever.
        self._pending = {other: future for other, future in self._pending.items() if other > key}
        if following is not None:
            self._pending[following] = self._thread.submit(self._read, following)
        return value

    def close(self) -> None:
        """Stop reading; what was announced and not yet begun is dropped."""
        self._thread.shutdown(wait=False, cancel_futures=True)
