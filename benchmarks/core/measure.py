"""Timing: competitors take turns within one process; medians with spread; the first call apart."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

K = TypeVar("K")

# Larger than any cache that could hold inputs between calls; the L2 of an H200 is 50 MiB.
_FLUSH_BYTES = 256 << 20
# About a millisecond of cycles. The GPU sleeps that long before the clock starts, so that the CPU has
# enqueued the whole call by then and launch overhead is not timed.
_HEAD_START = 2_000_000


@dataclass(frozen=True)
class Timing:
    """Seconds per call.

    Attributes:
        median, p20, p80: Median, 20th and 80th percentile over all calls.
        first: The first call, with whatever it compiles.
        calls: Number of timed calls.
        peak_bytes: CUDA only: peak allocation of a call.
        graph: CUDA only: median replay of the call as a CUDA graph; None where it cannot be captured.
        rounds: Median of each round; all competitors take turns in every round.
    """

    median: float
    p20: float
    p80: float
    first: float
    calls: int
    peak_bytes: int | None = None
    graph: float | None = None
    rounds: tuple[float, ...] = ()

    def over(self, other: Timing) -> float:
        """Return this competitor's time divided by another's: the median of their ratios in each round.

        A machine may change speed from one round to the next; ratios within a round do not feel that.
        """
        return statistics.median(own / its for own, its in self._paired(other))

    def beyond(self, other: Timing, factor: float) -> float:
        """Return the seconds above `factor` times another competitor's: the median over rounds."""
        return statistics.median(own - factor * its for own, its in self._paired(other))

    def _paired(self, other: Timing) -> list[tuple[float, float]]:
        if len(self.rounds) != len(other.rounds) or not self.rounds:
            raise ValueError(f"not timed in the same rounds: {len(self.rounds)} and {len(other.rounds)}")
        return list(zip(self.rounds, other.rounds))


class Clock:
    """Time single calls on a device."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device) if self.cuda else None

    def __call__(self, run: Callable[[], object]) -> float:
        """Return the seconds of one call."""
        if self.flush is None:
            started = time.perf_counter()
            run()
            return time.perf_counter() - started
        self.flush.zero_()
        torch.cuda._sleep(_HEAD_START)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3

    def peak_bytes(self, run: Callable[[], object]) -> int | None:
        """Return the peak allocation of one call above what was allocated before it; None without CUDA."""
        if not self.cuda:
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def replay(self, run: Callable[[], object], calls: int = 20) -> float | None:
        """Return the median seconds of the call as a CUDA graph, which leaves out the CPU's share.

        None without CUDA and for calls that cannot be captured.
        """
        if not self.cuda:
            return None
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(side_stream):
                run()
            torch.cuda.current_stream().wait_stream(side_stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                run()
        except RuntimeError:
            torch.cuda.synchronize()
            return None
        return statistics.median(self(graph.replay) for _ in range(calls))


def measure(
    competitors: dict[K, Callable[[], object]],
    device: torch.device,
    seconds: float = 1.0,
    least_calls: int = 5,
    most_calls: int = 200,
) -> dict[K, Timing]:
    """Time every competitor for about `seconds`, in rounds that go through all of them.

    Args:
        competitors: What to call, by name. Turns within rounds expose all of them to the same drifts of the
        machine.
        device: Where they run.
        seconds: Time per competitor. One that takes longer per call gets `least_calls` calls and one warm-up
            instead of two.
        least_calls, most_calls: Bounds of the number of timed calls.
    """
    clock = Clock(device)
    first = {name: clock(run) for name, run in competitors.items()}
    warm = {
        name: clock(run) if first[name] > seconds else min(clock(run), clock(run))
        for name, run in competitors.items()
    }
    peaks = {name: clock.peak_bytes(run) for name, run in competitors.items()}
    calls = {
        name: max(least_calls, min(most_calls, int(seconds / max(cost, 1e-7)))) for name, cost in warm.items()
    }
    times: dict[K, list[list[float]]] = {name: [] for name in competitors}
    # About ten calls per round for fast competitors: many rounds, of which one disturbance spoils few.
    rounds = max(least_calls, min(calls.values(), default=0) // 10)
    for index in range(rounds):
        order = list(competitors) if index % 2 == 0 else list(reversed(competitors))
        for name in order:
            # The shares of all rounds add up to the competitor's calls.
            share = calls[name] * (index + 1) // rounds - calls[name] * index // rounds
            # One untimed call: caches and allocator are in the state that the previous competitor left.
            if warm[name] < seconds:
                clock(competitors[name])
            times[name].append([clock(competitors[name]) for _ in range(share)])
    graphs = {name: clock.replay(run) for name, run in competitors.items()}
    return {name: _timing(times[name], first[name], peaks[name], graphs[name]) for name in competitors}


def _timing(rounds: list[list[float]], first: float, peak: int | None, graph: float | None) -> Timing:
    times = [seconds for calls in rounds for seconds in calls]
    cuts = statistics.quantiles(times, n=10, method="inclusive")
    medians = tuple(statistics.median(calls) for calls in rounds)
    return Timing(statistics.median(times), cuts[1], cuts[7], first, len(times), peak, graph, medians)
