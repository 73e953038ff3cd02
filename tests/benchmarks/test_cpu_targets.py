"""The CPU targets, alone and beside a busy process."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.core.measure import Timing
from benchmarks.core.neighbours import LOOP, neighbour
from benchmarks.suites import cpu_targets


def timings(dense, tiled):
    """Return the timings of 64 x 64 in both directions."""
    return {
        ("grid 64", direction, name): Timing(seconds, seconds, seconds, seconds, 5, rounds=(seconds,))
        for direction in ("forward", "both")
        for name, seconds in (("SDPA, dense mask", dense), ("mvar tiled", tiled))
    }


def test_what_is_left_is_compared_with_the_same_run_alone():
    beside = {"a busy loop": timings(24.0, 4.0), "a second PyTorch program": timings(24.0, 24.0)}
    lines = list(cpu_targets._speed_lines(timings(12.0, 1.0), beside))
    assert [line.split("]")[0] for line in lines] == ["[reached"] * 4 + ["[no target"] * 2
    assert "beside a busy loop: 6.0 x, 50% of what it is alone (at least 50%)" in lines[2]
    slower = {"a busy loop": timings(24.0, 4.1)}
    assert "[MISSED]" in list(cpu_targets._speed_lines(timings(12.0, 1.0), slower))[2]
    assert "[MISSED]" in next(cpu_targets._speed_lines(timings(8.9, 1.0), {}))


def test_adjacent_scales_are_compared_with_the_same_pyramid_without():
    pairs = list(cpu_targets._adjacent_pairs())
    assert [(own.pyramid.previous_scales, adjacent.pyramid.previous_scales) for own, adjacent in pairs] == [
        (0, 1)
    ] * 4
    found = {
        (case.name, case.direction, "mvar tiled"): Timing(
            seconds, seconds, seconds, seconds, 5, rounds=(seconds,)
        )
        for pair in pairs
        for case, seconds in zip(pair, (1.0, 2.2))
    }
    lines = list(cpu_targets._adjacent_lines(found))
    assert len(lines) == 4
    assert all(line.startswith("[reached]") and "2.20 x the time" in line for line in lines)
    found["pyramid 512px adjacent", "both", "mvar tiled"] = Timing(2.4, 2.4, 2.4, 2.4, 5, rounds=(2.4,))
    assert [line[:8] for line in cpu_targets._adjacent_lines(found)].count("[MISSED]") == 1


def test_a_neighbour_computes_until_the_block_ends():
    with neighbour(LOOP) as process:
        time.sleep(0.2)
        assert process.poll() is None
    assert process.poll() is not None


def test_a_neighbour_that_ends_early_fails_the_measurement():
    ends = neighbour("print(flush=True)\nraise SystemExit(3)")
    with pytest.raises(RuntimeError, match="ended by itself, with exit code 3"), ends as process:
        process.wait()


def test_a_neighbour_ends_with_the_process_that_started_it():
    """A suite that is killed cannot stop it, and it would slow the machine for ever."""
    script = (
        "import os, signal\nfrom benchmarks.core.neighbours import LOOP, neighbour\n"
        "with neighbour(LOOP) as process:\n"
        "    print(process.pid, flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while is_busy(int(killed.stdout)):
        assert time.monotonic() < deadline, "the neighbour is still busy"
        time.sleep(0.05)


def is_busy(pid):
    """Whether a process runs; one that has ended and that nobody waits for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
