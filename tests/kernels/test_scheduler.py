"""Tasks cover a call once, and threads take them as they come: order of additions, failures, forks."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mvar_kernels import Neighborhood
from mvar_kernels.backends.tiled import tasks, workers
from mvar_kernels.backends.tiled.tasks import Partition, TileTask, attention_tasks, partition_of, token_tasks
from mvar_kernels.backends.tiled.workers import run, workers_and_threads

from kernel_cases import random_neighborhood


@pytest.mark.parametrize("threads", [1, 2, 3, 20])
def test_every_task_runs_once_under_inference_mode(threads):
    seen, modes, finished = [], set(), []

    def work(task):
        seen.append(task)
        modes.add(torch.is_inference_mode_enabled())

    run(range(50), work, threads, finish=lambda: finished.append(threading.get_ident()))
    assert sorted(seen) == list(range(50)) and modes == {True}
    assert len(set(finished)) <= workers_and_threads(threads)[0] + 1
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("threads", range(1, 70))
def test_workers_use_nearly_all_cores_and_no_more(threads):
    count, each = workers_and_threads(threads)
    assert 1 <= count <= workers.MOST_WORKERS
    assert threads - each < count * each <= threads


def test_a_slow_task_holds_up_no_other():
    """While one task waits, the second thread does others, as many as may wait to be added."""
    others = threading.Semaphore(0)

    def work(task):
        if task == 0:
            assert all(others.acquire(timeout=60) for _ in range(14))
        else:
            others.release()
        return int

    run(range(40), work, threads=2)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_additions_follow_each_other_in_the_order_of_tasks(threads):
    """Whoever finishes first, and whatever an addition takes: sums have the same bits on any cores."""
    added, adding = [], threading.Lock()

    def work(task):
        time.sleep((task % 5 == 0) * 0.004)

        def add():
            assert adding.acquire(blocking=False), "two additions at once"
            time.sleep((task % 7 == 0) * 0.002)
            added.append(task)
            adding.release()

        return None if task % 3 == 2 else add

    run(range(60), work, threads)
    assert added == [task for task in range(60) if task % 3 < 2]


def test_a_failure_is_raised_once_all_threads_have_stopped():
    """Threads that wait for the failed task are woken, nothing is added, and the next call works."""
    begun, active, added = [], [], []

    def work(task):
        begun.append(task)
        active.append(task)
        try:
            if task == 0:
                while len(begun) < workers._AHEAD:  # the others wait for this one to be added
                    time.sleep(0.001)
                time.sleep(0.02)
                raise ZeroDivisionError("task 0")
        finally:
            active.remove(task)
        return lambda: added.append(task)

    with pytest.raises(ZeroDivisionError, match="task 0"):
        run(range(100), work, threads=3)
    assert not active and not added and len(begun) <= 3 * workers._AHEAD
    test_every_task_runs_once_under_inference_mode(3)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system sends no signals to threads")
def test_ctrl_c_ends_the_call_when_no_task_is_active(request):
    # A shell that starts the tests in the background has told them to ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    begun, active = [], []

    def work(task):
        begun.append(task)
        active.append(task)
        if task == 20:  # the caller waits by then
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.02)
        active.remove(task)

    with pytest.raises(KeyboardInterrupt):
        run(range(500), work, threads=2)
    assert not active and len(begun) < 500


def test_only_the_workers_own_operations_use_fewer_threads():
    """PyTorch would let every thread that starts later begin with the number that a worker has set."""
    before, inside = torch.get_num_threads(), []
    try:
        torch.set_num_threads(17)
        for threads, each in ((5, 1), (10, 2)):
            run(range(20), lambda task: inside.append(torch.get_num_threads()), threads)
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

        def work(task):
            squares[task] = number * task

        run(range(30), work, threads=2)
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
from mvar_kernels import Neighborhood
from mvar_kernels.backends.tiled import tasks, workers
from mvar_kernels.backends.tiled.tasks import Partition, TileTask, attention_tasks, partition_of, token_tasks
def done():
    seen = []
    workers.run(range(9), seen.append, 3)
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
from mvar_kernels.backends.tiled.workers import run
def report():
    seen = []
    run(range(9), seen.append, 3)
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


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_each_query_of_each_head_is_in_one_task(seed):
    rng = random.Random(seed)
    for _ in range(20):
        neighborhood, batch, shared, times = random_neighborhood(rng), *(rng.randint(1, 5) for _ in range(3))
        query, key = (
            torch.empty(batch, neighborhood.num_queries, heads, 8) for heads in (shared * times, shared)
        )
        partition = rng.choice([Partition(1, 1), Partition(1, 4), Partition(2, 1), Partition(12, 2)])
        count = torch.zeros(query.shape[:3])
        elements = rng.choice((1, 1 << 12, 1 << 20))
        for task in attention_tasks(neighborhood, query, key, partition, elements):
            if isinstance(task, TileTask):
                real = task.layout.real
                own = torch.ones_like(task.layout.queries, dtype=torch.bool) if real is None else real
                which = task.layout.queries[task.tiles][own[task.tiles]]
                count[task.batch, which] += 1
            else:
                count[task.batch, task.block.query_slice, task.heads] += 1
                heads = torch.arange(shared * times)[task.heads] // times
                assert torch.equal(heads.unique(), torch.arange(shared)[task.key_heads])
        assert (count == 1).all(), (neighborhood, partition)


def test_a_key_s_tasks_have_one_order_for_every_partition(seed):
    """Gradients are added in that order, so the tiles and heads of an element must not change places."""
    rng = random.Random(seed)
    for _ in range(12):
        neighborhood = random_neighborhood(rng)
        query, orders = torch.empty(3, neighborhood.num_queries, 2, 8), []
        for partition, elements in (
            (Partition(1, 1), 1),
            (Partition(2, 1), 1 << 12),
            (Partition(12, 3), 1 << 16),
        ):
            order = {}
            for task in attention_tasks(neighborhood, query, query, partition, elements):
                for element in range(task.batch.start, min(task.batch.stop, 3)):
                    if isinstance(task, TileTask):
                        names = [
                            (task.layout.blocks, tile) for tile in range(task.tiles.start, task.tiles.stop)
                        ]
                        heads = range(2)
                    else:
                        names, heads = [task.block], range(task.heads.start, min(task.heads.stop, 2))
                    for head in heads:
                        order.setdefault((element, head), []).extend(names)
            orders.append(order)
        assert orders[0] == orders[1] == orders[2], neighborhood


def test_tokens_are_covered_once():
    query, key = torch.empty(2, 700, 9, 50), torch.empty(2, 31, 9, 50)
    found = token_tasks(query, key)
    assert len(found) > 1
    for length, slices in ((700, [t.queries for t in found]), (31, [t.keys for t in found])):
        assert [i for each in slices for i in range(each.start, each.stop)] == list(range(length))


def test_only_long_calls_wake_threads(four_threads):
    grid = Neighborhood.of_grids((64, 64), (64, 64), (7, 7))
    small = Neighborhood.of_grids((16, 16), (16, 16), (7, 7))
    assert partition_of(torch.empty(1, 64 * 64, 8, 64), grid) == Partition(4, workers_and_threads(4)[1])
    assert partition_of(torch.empty(1, 256, 8, 64), small) == Partition(1, 4)
    assert partition_of(torch.empty(64, 256, 8, 64), small).threads == 4
    assert partition_of(torch.empty(1, 64 * 64, 8, 64, device="meta"), grid) == Partition(1, 4)
    torch.set_num_threads(1)
    assert partition_of(torch.empty(1, 64 * 64, 8, 64), grid) == Partition(1, 1)
    assert tasks._LEAST_PRODUCTS > 1 << 26, "auto's overhead on small grids"
