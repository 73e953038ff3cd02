"""Threads take tasks as they come: turns, failures, forks, several callers, and the end of the program."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
import torch

from mvar_kernels.backends.tiled import workers
from mvar_kernels.backends.tiled.workers import run, workers_and_threads


class Task(NamedTuple):
    number: int
    turn: int = 0
    lane: str = ""


def tasks(count):
    return [Task(number) for number in range(count)]


@pytest.mark.parametrize("threads", [1, 2, 3, 20])
def test_every_task_runs_once_under_inference_mode(threads):
    seen, modes, finished = [], set(), []

    def work(task, wait):
        seen.append(task.number)
        modes.add(torch.is_inference_mode_enabled())

    run(tasks(50), work, threads, finish=lambda: finished.append(threading.get_ident()))
    assert sorted(seen) == list(range(50)) and modes == {True}
    assert len(set(finished)) <= workers_and_threads(threads)[0] + 1
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("threads", range(1, 70))
def test_workers_use_nearly_all_cores_and_no_more(threads):
    count, each = workers_and_threads(threads)
    assert 1 <= count <= workers.MOST_WORKERS
    assert threads - each < count * each <= threads


def test_a_slow_task_holds_up_no_other():
    """While one task waits, the second thread does all the others."""
    others = threading.Semaphore(0)

    def work(task, wait):
        if task.number == 0:
            assert all(others.acquire(timeout=60) for _ in range(20))
        else:
            others.release()

    run(tasks(21), work, threads=2)


def test_turns_follow_each_other_in_each_lane(seed):
    given = [Task(number, turn, lane) for turn in range(4) for lane in "ab" for number in range(3)]
    passed, lock = [], threading.Lock()

    def work(task, wait):
        time.sleep((task.number == 0 and task.lane == "a") * 0.005)
        wait()
        with lock:
            passed.append(task)

    run(given, work, threads=4)
    for lane in "ab":
        turns = [task.turn for task in passed if task.lane == lane]
        assert turns == sorted(turns) and len(turns) == 12


def test_a_failure_is_raised_once_all_threads_have_stopped():
    """Tasks that wait for the failed one are woken, later ones do not begin, and the next call works."""
    given = [Task(0), *(Task(number, turn=1) for number in range(1, 40))]
    begun, active = [], []

    def work(task, wait):
        begun.append(task.number)
        active.append(task.number)
        try:
            if task.number == 0:
                time.sleep(0.02)
                raise ZeroDivisionError("task 0")
            wait()
        finally:
            active.remove(task.number)

    with pytest.raises(ZeroDivisionError, match="task 0"):
        run(given, work, threads=3)
    assert not active and set(begun) <= {0, 1, 2}
    test_every_task_runs_once_under_inference_mode(3)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system sends no signals to threads")
def test_ctrl_c_ends_the_call_when_no_task_is_active(request):
    # A shell that starts the tests in the background has told them to ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    begun, active = [], []

    def work(task, wait):
        begun.append(task.number)
        active.append(task.number)
        if task.number == 20:  # the caller waits by then
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.02)
        active.remove(task.number)

    with pytest.raises(KeyboardInterrupt):
        run(tasks(500), work, threads=2)
    assert not active and len(begun) < 500


def test_only_the_workers_own_operations_use_fewer_threads():
    """PyTorch would let every thread that starts later begin with the number that a worker has set."""
    before, inside = torch.get_num_threads(), []
    try:
        torch.set_num_threads(17)
        for threads, each in ((5, 1), (10, 2)):
            run(tasks(20), lambda task, wait: inside.append(torch.get_num_threads()), threads)
            assert set(inside) == {each}
            inside.clear()
            assert torch.get_num_threads() == 17
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(torch.get_num_threads).result() == 17
    finally:
        torch.set_num_threads(before)


def test_several_threads_call_at_once():
    def call(number):
        squares = [0] * 30

        def work(task, wait):
            squares[task.number] = number * task.number

        run(tasks(30), work, threads=2)
        return squares

    with ThreadPoolExecutor(6) as pool:
        for number, squares in enumerate(pool.map(call, range(60))):
            assert squares == [number * i for i in range(30)]


def test_threads_that_cannot_be_prepared_leave_the_work_to_the_caller(monkeypatch):
    def fails(threads):
        raise RuntimeError("no thread")

    monkeypatch.setattr(workers, "_pools", {})
    monkeypatch.setattr(workers, "_use_threads", fails)
    for _ in range(2):
        test_every_task_runs_once_under_inference_mode(3)


_FORK = """
import os, signal
from collections import namedtuple
from mvar_kernels.backends.tiled import workers
Task = namedtuple("Task", "number lane turn", defaults=("", 0))
def done():
    seen = []
    workers.run([Task(number) for number in range(9)], lambda task, wait: seen.append(task.number), 3)
    return sorted(seen) == list(range(9))
assert done()
workers._lock.acquire()  # as if another thread were making a pool in this moment
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(0 if done() else 1)
workers._lock.release()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert done()
"""

_EXIT = """
import atexit
from collections import namedtuple
from mvar_kernels.backends.tiled.workers import run
Task = namedtuple("Task", "number lane turn", defaults=("", 0))
def report():
    seen = []
    run([Task(number) for number in range(9)], lambda task, wait: seen.append(task.number), 3)
    print(sorted(seen))
atexit.register(report)
report()
"""


def program(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_makes_threads_of_its_own():
    program(_FORK)


def test_a_call_while_the_program_ends():
    """No thread can be started any more, so the caller does all tasks."""
    assert program(_EXIT) == f"{list(range(9))}\n" * 2
