"""A run killed at any point of its start goes on to the same bits, by the same command or by --resume."""

import contextlib
import os
import random
import re
import signal
import sys

import pytest

from chosen_cases import EVERYTHING
from fork_cases import Forked
from run_cases import arguments, assert_same_bits, make_data, succeed

OPTIONS = dict(steps=3, save_every=2, validate_every=1, sample_every=1)
CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate")
FIRST_CHECKPOINT = "os.rename checkpoints/.writing-000002"
SETTINGS_WRITTEN = "os.rename .config.yaml"
TEMPORARY = re.compile(r"[.][0-9a-f]{8}-[0-9]+-[0-9a-f]{8}([.][a-z]+)?$")


def before_each_change(out, call):
    """Call `call("what file")` before each change of a file below `out`, in this process, until it ends."""

    def hook(event, details):
        if event not in CHANGES or not str(details[0]).startswith(f"{out}{os.sep}"):
            return
        file = os.path.relpath(details[0], out)
        if re.search(r"[.]writing-\w+/", file) or (event == "os.remove" and TEMPORARY.search(file)):
            return  # a folder that is thrown away whole; a temporary file that has taken its place
        if event != "open" or details[2] & (os.O_WRONLY | os.O_RDWR):
            call(f"{event} {TEMPORARY.sub('', file)}")

    sys.addaudithook(hook)


@pytest.mark.skipif(sys.platform == "win32", reason="fork and kill -9 are POSIX")
def test_killed_before_a_change_up_to_the_first_checkpoint(tmp_path, seed):
    """Five of them, others each time; MVAR_EVERYTHING=1 takes every one."""
    folder = make_data(tmp_path)

    def straight():
        with (tmp_path / "changes").open("w", buffering=1) as file:
            before_each_change(folder / "straight", lambda change: file.write(change + "\n"))
            succeed(*arguments(folder, "straight", **OPTIONS))

    assert Forked(straight).wait() == 0
    changes = (tmp_path / "changes").read_text().splitlines()
    changes = changes[: changes.index(FIRST_CHECKPOINT) + 1]
    assert {"os.mkdir tokens", SETTINGS_WRITTEN, "os.rename .writing-best", "open metrics.jsonl"} <= {
        *changes
    }
    points = list(dict.fromkeys(changes))
    if not EVERYTHING:
        points = random.Random(seed).sample(points, 5)
    for number, at in enumerate(points):
        out = f"killed-{number}"
        command = arguments(folder, out, **OPTIONS)

        def killed(at=at, out=out, command=command):
            def kill(change):
                if change == at:
                    os.kill(os.getpid(), signal.SIGKILL)

            before_each_change(folder / out, kill)
            succeed(*command)

        assert Forked(killed).wait() == -signal.SIGKILL, at
        resumable = changes.index(at) > changes.index(SETTINGS_WRITTEN)
        again = ["train", "--resume", folder / out] if resumable and number % 2 else command
        with contextlib.redirect_stdout(sys.stderr):
            assert Forked(lambda again=again: succeed(*again)).wait() == 0, f"killed before {at}: {again[:2]}"
        assert_same_bits(folder / "straight", folder / out)
        left = [path.name for path in (folder / out).rglob(".*")]
        assert not left, f"killed before {at}"
