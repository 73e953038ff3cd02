"""Timing: competitors in turn within one process, warm-up and first call apart, medians with their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

K = TypeVar("K")

# Larger than any cache that holds inputs between calls: the L2 of an H200 is 50 MiB.
_FLUSH_BYTES = 256 << 20
# Cycles, about a millisecond, that a GPU sleeps before the clock starts: until then the CPU has handed over the call, whose own time is the GPU's.
_HEAD_START = 2_000_000


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the median, the 20th and 80th percentile, and the first call with whatever it compiles.

    rounds: the median of each round, in which all competitors took turns. CUDA only: peak_bytes, and graph, the median replay of a CUDA graph
    of the call (None where it cannot be captured).
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
        """How many times as long as another competitor of the same rounds: their median, as a machine may change from one to the next."""
        return statistics.median(own / its for own, its in self._beside(other))

    def beyond(self, other: Timing, factor: float) -> float:
        """Seconds more than `factor` times those of another competitor of the same rounds: their median."""
        return statistics.median(own - factor * its for own, its in self._beside(other))

    def _beside(self, other: Timing) -> list[tuple[float, float]]:
        if len(self.rounds) != len(other.rounds) or not self.rounds:
            raise ValueError(f"not timed in the same rounds: {len(self.rounds)} and {len(other.rounds)}")
        return list(zip(self.rounds, other.rounds))


class Clock:
    """Seconds of one call on a device."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device) if self.cuda else None

    def __call__(self, run: Callable[[], object]) -> float:
        if self.flush is None:
            begun = time.perf_counter()
            run()
            return time.perf_counter() - begun
        self.flush.zero_()
        torch.cuda._sleep(_HEAD_START)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3

    def peak_bytes(self, run: Callable[[], object]) -> int | None:
        """Peak allocation of one call above what was allocated before it."""
        if not self.cuda:
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def replay(self, run: Callable[[], object], calls: int = 20) -> float | None:
        """Median seconds of the call as a CUDA graph, without the CPU's share; None elsewhere and for what cannot be captured."""
        if not self.cuda:
            return None
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(aside):
                run()
            torch.cuda.current_stream().wait_stream(aside)
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
    """Every competitor about `seconds`, in rounds that go through all of them, so that a machine's moods hit all alike.

    What takes longer than `seconds` a call is still called `least_calls` times, after one warm-up instead of two. What takes less is called once
    more, untimed, at the start of its share of a round: there it matters that it finds caches and allocator as another left them.
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
    # Ten calls a share where there are many, so that a moment's disturbance is a few rounds of many.
    rounds = max(least_calls, min(calls.values(), default=0) // 10)
    for index in range(rounds):
        order = list(competitors) if index % 2 == 0 else list(reversed(competitors))
        for name in order:
            # The shares of the rounds add up to the competitor's calls.
            share = calls[name] * (index + 1) // rounds - calls[name] * index // rounds
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
