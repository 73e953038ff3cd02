"""Threads that take tasks as they come, so that a slow core takes fewer.

PyTorch cuts each operation into equal shares, one per core, and waits for all of them. While another process
computes on one of the cores, every operation waits for that core. Here each thread runs whole tasks with
operations of its own and takes the next task when it is done.

What several tasks add to the same numbers, they add in the order of the tasks, so that sums have the same
bits on any number of cores. A task returns its additions as a function, and goes on: whoever finishes the
task that all have waited for runs what is due.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

import torch

from mvar_kernels import caches

# Python and the calls of operations take about a seventh of a task, most of it under Python's lock, so more
# threads than this would wait for each other. On more cores each thread's operations use several.
MOST_WORKERS = 8
# Tasks of each worker that may be begun or waiting to be added, which bounds their memory.
_AHEAD = 8

T = TypeVar("T")
Addition = Callable[[], object]


def run(
    tasks: Sequence[T],
    work: Callable[[T], Addition | None],
    threads: int,
    finish: Callable[[], None] = lambda: None,
) -> None:
    """Call `work(task)` for every task under inference mode, begun in the order given.

    Args:
        tasks: what to work on.
        work: may return a function to be called once, after those of all earlier tasks and at no time beside
            another.
        threads: how many cores to use; with 1 all tasks run in the calling thread.
        finish: called in each thread after its last task.

    Raises:
        Exception: what `work` raised first; tasks that have not begun by then are not run.
    """
    workers = min(workers_and_threads(threads)[0], len(tasks))
    batch = _Batch(tasks, work, finish, most_ahead=_AHEAD * max(1, workers))
    try:
        wait(_submitted(batch, threads, workers if workers > 1 else 0))
    except BaseException:  # Ctrl-C: nobody may write to the results after this call.
        batch.stop()
        batch.wait_until_idle()
        raise
    # What no thread has taken: all tasks where there are no threads.
    batch.work_off()
    batch.raise_failure()


def _submitted(batch: _Batch[T], threads: int, count: int) -> list[Future[None]]:
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


class _Batch(Generic[T]):
    """The tasks of one call of `run`: 0 .. begun - 1 are taken, those of 0 .. added - 1 are added."""

    def __init__(
        self,
        tasks: Sequence[T],
        work: Callable[[T], Addition | None],
        finish: Callable[[], None],
        most_ahead: int,
    ) -> None:
        self.tasks, self.work, self.finish, self.most_ahead = tasks, work, finish, most_ahead
        self.begun = self.added = 0
        self.due: dict[int, Addition | None] = {}  # of tasks that are done, by their number
        self.adding = False
        self.active = 0
        self.stopped = False
        self.failure: BaseException | None = None
        self.changed = threading.Condition()

    def work_off(self) -> None:
        """Take tasks until none is left."""
        with self.changed:
            self.active += 1
        try:
            with torch.inference_mode():
                while (number := self._next_task()) is not None:
                    self._add(number, self.work(self.tasks[number]))
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
        """Let no further task begin, and wake those that wait."""
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

    def _next_task(self) -> int | None:
        with self.changed:
            # The oldest task that is not added is at work in some thread, so this ends.
            self.changed.wait_for(
                lambda: (
                    self.stopped or self.begun == len(self.tasks) or self.begun < self.added + self.most_ahead
                )
            )
            if self.stopped or self.begun == len(self.tasks):
                return None
            self.begun += 1
            return self.begun - 1

    def _add(self, number: int, addition: Addition | None) -> None:
        """Run the additions that are due, unless another thread does: it will find this one."""
        with self.changed:
            self.due[number] = addition
            if self.adding:
                return
            self.adding = True
        while True:
            with self.changed:
                if self.stopped or self.added not in self.due:
                    self.adding = False
                    return
                addition = self.due.pop(self.added)
                self.added += 1
                self.changed.notify_all()
            if addition is not None:
                addition()


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
