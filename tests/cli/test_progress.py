"""Every loop of every command: its total from the first moment on, its end, on a terminal and without one."""

import fcntl
import logging
import os
import re
import struct
import sys
import termios
import threading

import pytest
from PIL import Image

from mvar_models.cli import COMMANDS
from mvar_models.cli.main import main
from mvar_models.sampling import progress

from chosen_cases import once

_TINY = "--data digits --steps 1 --batch-size 4"
_EVALUATE = "evaluate digits@held-out --reference digits@held-out --features pixels --metrics fd"
# A call per command, and the loops that it counts.
CALLS = {
    "calibrate-cache": ("calibrate-cache --model var-digits --n 2 -o preset.json", ["sampling"]),
    "classify": ("classify digits --model mvar-digits --n 2", ["classifying"]),
    "edit": (
        "edit --model mvar-digits --image image.png --padding 8 --labels 3,5 --n 2 --accept-psnr",
        ["sampling"],
    ),
    "evaluate": (
        f"{_EVALUATE} --model mvar-digits --per-class 1 --held-out digits -o out",
        ["sampling", "features of digits@held-out", "features of mvar-digits", "encoding", "validation"],
    ),
    "finetune": (
        f"finetune --model var-digits {_TINY} --evaluate-every 1 --evaluate-images 4 "
        "--evaluate-features pixels --sample-every 1 --out out",
        ["encoding", "training", "validation", "features of held-out", "features of drawn", "sampling"],
    ),
    "gallery": ("gallery --model mvar-digits --labels 3,5 --n 2 -o out", ["sampling"]),
    "neon": (
        "neon --model mvar-digits --per-class 2 --steps 1 --batch-size 4 --samples codes -o out",
        ["encoding", "training", "validation"],
    ),
    "sample": ("sample --model mvar-digits --labels 3,5 --n 2 --batch-size 3 -o out", ["sampling"]),
    "sample --npz": ("sample --model mvar-digits --per-class 1 --batch-size 3 --npz out.npz", ["sampling"]),
    "sample --refiner": (
        "sample --model mvar-digits --refiner var-digits --refine-from 3 --labels 3 --n 2 -o out",
        ["sampling"],
    ),
    "sweep": (
        "sweep --model mvar-digits --reference digits@held-out --features pixels --per-class 1 "
        "--guidance-scale 1 -o out",
        ["features of digits@held-out", "sweep", "sampling", "features of out/guidance1.0-k0-p0.96.npz"],
    ),
    "tokenize": ("tokenize --data digits --vqvae vae-digits -o out", ["encoding"]),
    "train": (f"train --depth 1 {_TINY} --out out", ["encoding", "training", "validation"]),
    "train-scorer": (
        f"train-scorer --model mvar-digits --per-class 10 --width 8 {_TINY} --out out",
        ["encoding", "sampling", "training", "validation"],
    ),
    "train-vqvae": (f"train-vqvae --channels 32 {_TINY} --out out", ["training", "validation"]),
}  # fmt: skip
# The others have no long loop, but for `demo`: tests/demo/test_demo.py counts those of its one run.
WITHOUT_LOOPS = {"demo", "doctor", "export", "models"}
_BAR = re.compile(r"^(.+): +\d+%\|.*\| ([\d,.]+) of ([\d,]+) \w+s \[[\d:]+, [\d:?]+ left, ")
_LINE = re.compile(r"^(.+): ([\d,]+) of ([\d,]+) \w+s in [\d,]+ s, about [\d,]+ s left")


class Terminal:
    """Standard error as a pseudo-terminal; `text` is what it showed once it is closed."""

    def __init__(self):
        self._ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
        self.file = os.fdopen(theirs, "w")
        self._parts = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        try:
            while part := os.read(self._ours, 1 << 16):
                self._parts.append(part)
        except OSError:  # the other end is closed
            pass

    def close(self):
        self.file.close()
        self._reader.join()
        os.close(self._ours)
        self.text = b"".join(self._parts).decode()


def counted(pattern, lines):
    """The loops in the order in which they began, each as (title, first and last count, total)."""
    loops = []
    for title, done, total in (match.groups() for match in map(pattern.match, lines) if match):
        done, total = (float(number.replace(",", "")) for number in (done, total))
        known = next((loop for loop in reversed(loops) if loop[0] == title and loop[2] <= done), None)
        if known is None or known[2] == known[3] != done:
            loops.append([title, done, done, total])
        else:
            known[2] = done
    return loops


def test_every_command_is_called_here():
    assert {name.partition(" ")[0] for name in CALLS} | WITHOUT_LOOPS == set(COMMANDS)


@pytest.mark.parametrize("name, shown", once(list(CALLS), ["terminal", "pipe"]))
def test_totals_from_the_first_moment_on(name, shown, tmp_path, monkeypatch, capsys):
    if name == "sweep":
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("image.png")
    monkeypatch.setattr(progress, "_FIRST_LINE", 0.0)
    monkeypatch.setattr(progress, "_BETWEEN_LINES", 0.0)
    call, expected = CALLS[name]
    if shown == "terminal":
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal.file)
        try:
            main(call.split(), standalone_mode=False)
        finally:
            terminal.close()
        loops = counted(_BAR, re.split(r"[\r\n]+", re.sub(r"\x1b\[A", "", terminal.text)))
        assert all(first == 0 for _, first, _, _ in loops)
    else:
        main(call.split(), standalone_mode=False)
        text = capsys.readouterr().err
        assert "\r" not in text and "%|" not in text
        loops = counted(_LINE, text.splitlines())
    assert {title for title, *_ in loops} == set(expected)
    assert all(last == total > 0 for _, _, last, total in loops), loops


def test_a_log_line_has_a_line_of_its_own(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal.file)
    handler = logging.StreamHandler(terminal.file)
    logging.getLogger().addHandler(handler)
    try:
        with progress.showing(), progress.counting("loop", 2) as meter:
            meter.advance()
            logging.getLogger("toy").warning("beware")
            meter.advance()
    finally:
        logging.getLogger().removeHandler(handler)
        terminal.close()
    assert "beware" in re.split(r"[\r\n]+", terminal.text)


def test_other_ranks_and_libraries_show_nothing(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_FIRST_LINE", 0.0)
    with progress.counting("loop", 1) as meter:
        meter.advance()
    monkeypatch.setenv("RANK", "1")
    with progress.showing(), progress.counting("loop", 1) as meter:
        meter.advance()
    assert capsys.readouterr().err == ""
