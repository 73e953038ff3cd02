"""How a run ends early: in one line that says why and how to go on, with its last checkpoint complete."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any


class RunStopped(RuntimeError):
    """A run ended before its last step; nothing of its last checkpoint is lost. `exit_code` is the command's."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StopSignals:
    """While open, SIGTERM and Ctrl-C are noted instead of ending the process; the loop finishes its step and saves.

    A second signal ends the process at once. One that follows within two seconds does not count: torchrun passes on to its processes what the
    terminal has sent them already. Outside the main thread, which alone gets signals, it does nothing.
    """

    NUMBERS = (signal.SIGINT, signal.SIGTERM)
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
    """What to raise when a signal has ended a run after `step`; the exit code is 128 + the signal's number, as shells have it."""
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    return RunStopped(
        f"stopped by {name} after step {step}, which is saved; go on with --resume {run}", 128 + number
    )
