"""Progress bars: what they show, and that they stay quiet where nobody looks."""

import logging
import sys

import pytest
from tqdm import tqdm

from mvar_models.cli import progress


@pytest.fixture
def bars(monkeypatch):
    """The bars that were opened, each with the figures that it was given last."""
    opened = []

    class Recorded(tqdm):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            opened.append(self)

        def set_postfix(self, figures, **options):
            self.figures = figures

    monkeypatch.setattr(progress, "tqdm", Recorded)
    return opened


def test_steps_count_from_the_first_one_on(bars, capsys):
    with progress.step_progress(10) as report:
        assert not bars
        report({"step": 7, "loss": 1.23456})
        report({"step": 9, "loss": 0.5, "val_loss": 0.25, "lr": 1.0})
    (bar,) = bars
    assert (bar.initial, bar.n, bar.total) == (7, 9, 10)
    assert bar.figures == {"loss": "0.5", "val_loss": "0.25"}
    assert "step" in capsys.readouterr().err


def test_a_run_without_steps_opens_no_bar(bars):
    with progress.step_progress(0):
        pass
    assert not bars


def test_other_ranks_show_nothing(bars, capsys):
    with progress.step_progress(2, shown=False) as report:
        report({"step": 1})
    assert bars
    assert capsys.readouterr().err == ""


def test_counts_are_shown_on_a_terminal_alone(bars, monkeypatch):
    with progress.count_progress("image") as report:
        report(1, 2)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.count_progress("image") as report:
        report(1, 4)
        report(3, 4)
        assert (bars[1].n, bars[1].total, bars[1].unit, bars[1].disable) == (3, 4, "image", False)
    assert bars[0].disable


def test_a_failure_closes_the_bar_and_restores_logging(bars):
    before = logging.getLogger().handlers[:]

    def fail():
        with progress.step_progress(2) as report:
            report({"step": 1})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert bars[0].disable, "tqdm disables a bar that it closes"
    assert logging.getLogger().handlers == before
