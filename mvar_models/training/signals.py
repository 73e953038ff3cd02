"""How a run ends early: with its last checkpoint complete, and one line that says why and how to continue."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

import torch

from mvar_models.distributed import RunStopped


class StopSignals:
    """Notes SIGTERM and Ctrl-C while open, so that the loop can finish its step and save.

    A second signal ends the process at once. Signals reach the main thread alone; elsewhere it does nothing.

    Attributes:
        received: The first signal received, or 0.
    """

    NUMBERS = (signal.SIGINT, signal.SIGTERM)
    # torchrun forwards to its processes what the terminal has already sent them; that does not count.
    _REPEAT_AFTER = 2.0

    def __init__(self) -> None:
        self.received = 0
        self._when = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in self.NUMBERS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and time.monotonic() - self._when > self._REPEAT_AFTER:
            self._restore()
            signal.raise_signal(number)
            return
        if not self.received:
            self.received, self._when = number, time.monotonic()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def __exit__(self, *exc: object) -> None:
        self._restore()


def stopped_by(number: int, step: int, run: object) -> RunStopped:
    """Return the exception to raise when a signal ended a run after `step`."""
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    exit_code = 128 + number  # a shell's convention
    return RunStopped(
        f"stopped by {name} after step {step}, which is saved; continue with --resume {run}", exit_code
    )


def received(signals: StopSignals | None) -> torch.Tensor:
    """Return one float64 per signal that stops a run: 1 if this process received it."""
    mine = 0 if signals is None else signals.received
    return torch.tensor(
        [float(mine == number) for number in StopSignals.NUMBERS], dtype=torch.float64, device="cpu"
    )


def first_signal(counts: list[float]) -> int:
    """Return the first signal that any process received, or 0."""
    return next((int(number) for number, count in zip(StopSignals.NUMBERS, counts) if count), 0)
