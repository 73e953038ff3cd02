"""Files that appear complete or not at all, and folders that remember the settings they were made with."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mvar_models import files
from mvar_models.checkpoints.tensor_files import save_safetensors
from mvar_models.files import (
    FolderInUse,
    SettingsMismatch,
    claim,
    compare,
    create_text,
    file_names,
    held,
    numbered,
    replacing,
    sweep,
    write_text,
)

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and file modes are POSIX")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "file"
    write_text(target, "old")
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_new_file_shows_only_when_complete(tmp_path):
    target = tmp_path / "weights.bin"
    write_text(target, "old")
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
        assert temporary.parent == target.parent, "a rename is atomic on one file system only"
        assert temporary.suffix == target.suffix, "writers choose the format by the suffix"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@posix
@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600)])
def test_others_may_read_what_the_umask_allows(tmp_path, mask, mode):
    """A temporary file is private, and must not stay so under its new name."""
    before = os.umask(mask)
    try:
        write_text(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_a_folder_is_claimed_once(tmp_path):
    record = tmp_path / "new" / "settings.json"
    claim(record, {"size": 1, "name": "a"}, "codes")
    assert json.loads(record.read_text()) == {"size": 1, "name": "a"}
    written = record.stat().st_mtime_ns
    claim(record, {"name": "a", "size": 1}, "codes")
    assert record.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    "settings, changed",
    [
        ({"size": 2, "name": "a"}, ["size"]),
        ({"name": "b", "size": 2}, ["name", "size"]),
        ({"size": 1}, ["name"]),
        ({"size": 1, "name": "a", "kind": "c"}, ["kind"]),
    ],
)
def test_other_settings_are_named_and_change_nothing(tmp_path, settings, changed):
    record = tmp_path / "settings.json"
    claim(record, {"size": 1, "name": "a"}, "codes")
    before = record.read_bytes()
    with pytest.raises(SettingsMismatch, match=", ".join(changed)) as error:
        claim(record, settings, "codes")
    assert error.value.changed == changed
    assert str(tmp_path) in str(error.value)
    assert record.read_bytes() == before


def test_equal_settings_compare_in_any_order(tmp_path):
    compare(tmp_path, {"a": 1, "b": [2]}, {"b": [2], "a": 1}, "images")


def race(folder, number, start):
    start.wait()
    outcome = "claimed"
    try:
        claim(folder / "settings.json", {"number": number % 3}, "codes")
    except SettingsMismatch:
        outcome = "refused"
    (folder / f"{number}.{outcome}").touch()


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "a file system without"])
def test_of_many_processes_those_with_the_same_settings_share_a_folder(tmp_path, monkeypatch, links):
    """Check and creation are one step: nobody overwrites a record, and all others are told."""
    if not links:

        def link(*paths):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
    context = multiprocessing.get_context("fork" if sys.platform != "win32" else "spawn")
    for turn in range(10):
        folder, start = tmp_path / str(turn), context.Event()
        folder.mkdir()
        racers = [context.Process(target=race, args=(folder, number, start)) for number in range(12)]
        for racer in racers:
            racer.start()
        start.set()
        for racer in racers:
            racer.join()
        winner = json.loads((folder / "settings.json").read_text())["number"]
        outcomes = {path.name for path in folder.iterdir()} - {"settings.json"}
        assert outcomes == {
            f"{number}.{'claimed' if number % 3 == winner else 'refused'}" for number in range(12)
        }


def test_writing_does_not_touch_the_umask_of_other_threads(tmp_path, monkeypatch):
    """It belongs to the whole process: a file that another thread makes meanwhile would be open to all."""

    def umask(mask):
        raise AssertionError("the umask was changed")

    monkeypatch.setattr(os, "umask", umask)
    write_text(tmp_path / "file", "text")


HOLDS = """
import os, signal, sys
from pathlib import Path
from mvar_models.files import held, replacing
with held(Path(sys.argv[1]), "is training"), replacing(Path(sys.argv[1]) / "picture.png"):
    print("held", flush=True)
    sys.stdin.read()
"""


@posix
def test_a_held_folder_names_its_holder_and_outlives_no_kill(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])},
    )
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(FolderInUse, match=rf"{tmp_path} is in use: process {holder.pid} on \S+ is training;"),
        held(tmp_path, "is training"),
    ):
        raise AssertionError("two hold the folder")
    sweep(tmp_path)
    assert len(list(tmp_path.glob(".picture.png.*.png"))) == 1, "its writer is alive"
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert (tmp_path / ".lock").exists()
    with held(tmp_path, "is training"):
        sweep(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert not list(tmp_path.iterdir())


@posix
@pytest.mark.parametrize(
    "name, write",
    [
        ("a.png", lambda path: write_text(path, "")),
        ("new.json", lambda path: create_text(path, "")),
        ("model.safetensors", lambda path: save_safetensors({}, path)),
    ],
)
def test_the_first_write_into_a_folder_sweeps_what_killed_writers_left(tmp_path, name, write):
    """Whatever they were writing; files of living writers and of people stay."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = [
        tmp_path / f".00001_0.png.{files._MACHINE}-{process}-01234567.png"
        for process in (dead.pid, os.getpid())
    ]
    others = [tmp_path / f".00001_0.png.00000000-{dead.pid}-01234567.png", tmp_path / ".notes.png"]
    for path in (*left, *others):
        path.touch()
    write(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {name, *(path.name for path in (left[1], *others))}


def test_one_at_a_time_holds_a_folder_whoever_removes_the_lock_s_file(tmp_path):
    """The file is removed at the end, perhaps between another's opening and locking it."""
    inside, most, turns = [], [], []

    def work():
        while len(turns) < 200:
            try:
                with held(tmp_path, "works"):
                    inside.append(1)
                    most.append(len(inside))
                    turns.append(1)
                    inside.pop()
            except FolderInUse:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch):
    def unsupported(handle):
        raise OSError(files.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files, "_lock", unsupported)
    with held(tmp_path, "is training"), held(tmp_path, "is training"):
        pass


@pytest.mark.parametrize(
    "places, names",
    [
        (["mvar-digits", "var-digits"], ["mvar-digits", "var-digits"]),
        (["runs/a/model", "runs/b/model", "other"], ["a-model", "b-model", "other"]),
        (["one/a/model", "two/a/model", "b/model"], ["one-a-model", "two-a-model", "b-model"]),
        (["org/model", "runs/Model"], ["org-model", "runs-Model"]),
        (["x", "x", "./x", "x-2"], ["x", "x-2", "x-3", "x-2-2"]),
        (["a b", "a/b", "a-b"], ["a-b", "b", "a-b-2"]),
        (["digits@train", "digits@held-out"], ["digits@train", "digits@held-out"]),
        (["/a/b/.."], ["a"]),
        (["/"], ["root"]),
    ],
)
def test_names_of_files_are_distinct_and_name_their_places(tmp_path, monkeypatch, places, names):
    monkeypatch.chdir(tmp_path)
    found = file_names(places)
    assert len({name.casefold() for name in found}) == len(places)
    assert found == names


def test_numbers_follow_names_that_came_before():
    assert numbered(["crane", "crane", "Crane", "crane-2"]) == ["crane", "crane-2", "Crane-3", "crane-2-2"]
