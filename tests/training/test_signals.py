"""A first signal is noted, a second one ends the process."""

import signal

import pytest

from mvar_models.training.signals import StopSignals, stopped_by


def test_a_second_signal_ends_at_once(monkeypatch):
    # In a background job of a shell, SIGINT is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
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


@pytest.mark.parametrize(
    "number, code, name", [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
)
def test_the_exit_code_is_a_shell_s(number, code, name):
    stopped = stopped_by(number, 40, "runs/a")
    assert stopped.exit_code == code
    assert name in str(stopped)
    assert "step 40" in str(stopped)
    assert "--resume runs/a" in str(stopped)
