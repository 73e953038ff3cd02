"""A run killed at any point of its start goes on to the same bits, by the same command or by --resume."""

import contextlib
import os
import random
import re
import signal
import sys
import traceback

import pytest

from run_cases import arguments, assert_same_bits, invoke, make_data

OPTIONS = dict(steps=3, save_every=2, validate_every=1, sample_every=1)
CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate")
FIRST_CHECKPOINT = "os.rename checkpoints/.writing-000002"
SETTINGS_WRITTEN = "os.rename .config.yaml"
TEMPORARY = re.compile(r"[.][0-9a-f]{8}-[0-9]+-[0-9a-f]{8}([.][a-z]+)?$")


def in_a_child(work):
    """Run `work` in a fork of this process and return how it ended: 0, or minus the signal that killed it."""
    sys.stdout.flush()
    process = os.fork()
    if not process:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


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


def train(*given):
    result = invoke(*given)
    assert result.exit_code == 0, f"{result.output} {result.exception}"
    return result.output


@pytest.mark.skipif(sys.platform == "win32", reason="fork and kill -9 are POSIX")
def test_killed_before_a_change_up_to_the_first_checkpoint(tmp_path, seed):
    """Ten of them, drawn afresh each time; MVAR_EVERY_KILL=1 takes every one."""
    folder = make_data(tmp_path)

    def straight():
        with (tmp_path / "changes").open("w", buffering=1) as file:
            before_each_change(folder / "straight", lambda change: file.write(change + "\n"))
            train(*arguments(folder, "straight", **OPTIONS))

    assert in_a_child(straight) == 0
    changes = (tmp_path / "changes").read_text().splitlines()
    changes = changes[: changes.index(FIRST_CHECKPOINT) + 1]
    assert {"os.mkdir tokens", SETTINGS_WRITTEN, "os.rename .writing-best", "open metrics.jsonl"} <= {
        *changes
    }
    points = list(dict.fromkeys(changes))
    if not os.environ.get("MVAR_EVERY_KILL"):
        points = random.Random(seed).sample(points, 10)
    for number, at in enumerate(points):
        out = f"killed-{number}"
        command = arguments(folder, out, **OPTIONS)

        def killed(at=at, out=out, command=command):
            def kill(change):
                if change == at:
                    os.kill(os.getpid(), signal.SIGKILL)

            before_each_change(folder / out, kill)
            train(*command)

        assert in_a_child(killed) == -signal.SIGKILL, at
        resumable = changes.index(at) > changes.index(SETTINGS_WRITTEN)
        again = ["train", "--resume", folder / out] if resumable and number % 2 else command
        with contextlib.redirect_stdout(sys.stderr):
            assert in_a_child(lambda again=again: train(*again)) == 0, f"killed before {at}: {again[:2]}"
        assert_same_bits(folder / "straight", folder / out)
        left = [path.name for path in (folder / out).rglob(".*")]
        assert not left, f"killed before {at}"
