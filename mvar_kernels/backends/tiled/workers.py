"""Threads that take tasks as they come, so that a slow core takes fewer.

PyTorch cuts each operation into equal shares, one per core, and waits for all of them. While another process
computes on one of the cores, every operation waits for that core. Here each thread runs whole tasks with
operations of its own and takes the next task when it is done.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol, TypeVar

import torch

from mvar_kernels import caches

# Python and the calls of operations take about a seventh of a task, most of it under Python's lock, so more
# threads than this would wait for each other. On more cores each thread's operations use several.
MOST_WORKERS = 8


class Task(Protocol):
    """What a thread takes at a time.

    Attributes:
        lane, turn: a task may wait until all tasks of its lane that have the turn before its own are done.
    """

    @property
    def lane(self) -> Hashable: ...

    @property
    def turn(self) -> int: ...


T = TypeVar("T", bound=Task)
Wait = Callable[[], None]


def run(
    tasks: Sequence[T],
    work: Callable[[T, Wait], None],
    threads: int,
    finish: Callable[[], None] = lambda: None,
) -> None:
    """Call `work(task, wait)` for every task under inference mode, begun in the order given.

    Args:
        tasks: in each lane, turns begin at 0 and never decrease or leave a gap.
        work: calls `wait` before it does what has to come after the tasks of the turn before.
        threads: how many cores to use; with 1 all tasks run in the calling thread.
        finish: called in each thread after its last task.

    Raises:
        Exception: what `work` raised first; tasks that have not begun by then are not run.
    """
    batch = _Batch(tasks, work, finish)
    count = min(workers_and_threads(threads)[0], len(tasks))
    try:
        wait(_submitted(batch, threads, count if count > 1 else 0))
    except BaseException:  # Ctrl-C: nobody may write to the results after this call.
        batch.stop()
        batch.wait_until_idle()
        raise
    # What no thread has taken: all tasks where there are no threads.
    batch.work_off()
    batch.raise_failure()


def _submitted(batch: _Batch, threads: int, count: int) -> list[Future[None]]:
    futures: list[Future[None]] = []
    try:
        for _ in range(count):
            futures.append(_pool(threads).submit(batch.work_off))
    except RuntimeError:  # The interpreter is shutting down, or the system has no more threads to give.
        pass
    return futures


def workers_and_threads(threads: int) -> tuple[int, int]:
    """Return how many workers share `threads` cores, and how many of them each worker's operations use."""
    each = -(-threads // MOST_WORKERS)
    return threads // each, each


class _Stopped(Exception):
    """Another worker failed, so the turn that this one waits for never comes."""


class _Batch:
    """The tasks of one call of `run`."""

    def __init__(
        self, tasks: Sequence[T], work: Callable[[T, Wait], None], finish: Callable[[], None]
    ) -> None:
        self.work, self.finish = work, finish
        self.waiting = deque(tasks)
        self.unfinished = Counter((task.lane, task.turn) for task in tasks)
        self.changed = threading.Condition()
        self.active = 0
        self.stopped = False
        self.failure: BaseException | None = None

    def work_off(self) -> None:
        """Take tasks until none is left."""
        with self.changed:
            self.active += 1
        try:
            with torch.inference_mode():
                while not self.stopped:
                    try:
                        task = self.waiting.popleft()
                    except IndexError:
                        break
                    self.work(task, functools.partial(self._wait_for_turn, task))
                    self._finished(task)
        except _Stopped:
            pass
        except BaseException as failure:  # raised in the calling thread, by `raise_failure`
            self.stop(failure)
        finally:
            self.finish()
            with self.changed:
                self.active -= 1
                self.changed.notify_all()

    def wait_until_idle(self) -> None:
        """Wait until no thread works on a task; after `stop` none will begin another."""
        with self.changed:
            self.changed.wait_for(lambda: not self.active)

    def stop(self, failure: BaseException | None = None) -> None:
        """Let no further task begin, and wake those that wait for their turn."""
        with self.changed:
            self.stopped = True
            self.failure = self.failure or failure
            self.changed.notify_all()

    def raise_failure(self) -> None:
        """Raise what a task raised first, if any did."""
        failure, self.failure = self.failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # the exception would hold this frame, and with it itself and all tensors

    def _finished(self, task: Task) -> None:
        with self.changed:
            self.unfinished[task.lane, task.turn] -= 1
            if not self.unfinished[task.lane, task.turn]:
                self.changed.notify_all()

    def _wait_for_turn(self, task: Task) -> None:
        # Tasks of the turn before have begun earlier and wait for nothing but earlier turns, so this ends.
        before = task.lane, task.turn - 1
        with self.changed:
            self.changed.wait_for(lambda: self.stopped or not self.unfinished[before])
            if self.unfinished[before]:
                raise _Stopped


_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()
_setting = threading.Lock()


def _pool(threads: int) -> ThreadPoolExecutor:
    with _lock:
        if threads not in _pools:
            workers, each = workers_and_threads(threads)
            ready = threading.Barrier(workers + 1)
            pool = ThreadPoolExecutor(workers, "mvar-tiled", _begin, (each, ready))
            try:
                for _ in range(workers):
                    pool.submit(int)  # starts a thread, as none is idle before all are ready
                ready.wait()
            except BaseException:
                ready.abort()
                raise
            _pools[threads] = pool
        return _pools[threads]


def _begin(threads: int, ready: threading.Barrier) -> None:
    try:
        _use_threads(threads)
    except BaseException:
        ready.abort()
        raise
    ready.wait()


def _use_threads(threads: int) -> None:
    """Let the operations of this thread use so many cores, and those of no other thread."""
    with _setting:
        # A new thread begins with the number that was set last, in whatever thread. So that number is put
        # back, by a thread that ends at once.
        last_set = torch.get_num_threads()
        torch.set_num_threads(threads)
        restore = threading.Thread(target=torch.set_num_threads, args=(last_set,))
        restore.start()
        restore.join()


@caches.on_clear
def _end_pools() -> None:
    """Let the threads end. A call that has them finishes; one that is about to use them does without."""
    with _lock:
        for pool in _pools.values():
            pool.shutdown(wait=False)
        _pools.clear()


def _forget_pools() -> None:
    """Begin afresh in a forked process, which has none of the threads, and maybe a lock that is held."""
    global _lock, _setting
    _lock, _setting = threading.Lock(), threading.Lock()
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)
