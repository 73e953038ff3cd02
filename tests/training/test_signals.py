"""A first signal is noted, a second one ends the process."""

import signal

import pytest


def test_a_second_signal_ends_at_once(monkeypatch):
    from mvar_models.training.signals import StopSignals

    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # in a background job of a shell it is ignored
    try:
        with StopSignals() as signals, pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)  # torchrun passing on what the terminal sent already
            assert signals.received == signal.SIGINT
            monkeypatch.setattr(signals, "_when", signals._when - 60)
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
