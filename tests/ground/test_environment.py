"""What a result depends on besides its arguments: versions, optional packages, random numbers."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from mvar_models import environment as module
from mvar_models.environment import (
    commit,
    environment,
    peak_resident_bytes,
    resident_bytes,
)
from mvar_models.optional import require
from mvar_models.randomness import Purpose, batch_members, generator


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder that stands for the package's, outside any checkout."""
    for name in ("MVAR_COMMIT", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(module, "__file__", str(tmp_path / "environment.py"))
    return tmp_path


def test_a_record_is_json():
    record = json.loads(json.dumps(environment()))
    assert record["torch"] == torch.__version__
    assert record["threads"] == torch.get_num_threads()
    assert record["commit"]
    assert record["processor"]


@pytest.fixture
def git(package):
    """Runs git in the package's folder, which is a repository with one commit that does not hold it."""
    if shutil.which("git") is None:
        pytest.skip("needs git")

    def run(*arguments):
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", "-C", package, *identity, *arguments], check=True, capture_output=True)
        return done.stdout.decode().strip()

    run("init", "--quiet")
    run("commit", "--quiet", "--no-verify", "--allow-empty", "--message", "First")
    return run


def test_a_changed_checkout_is_dirty(package, git):
    (package / "environment.py").write_text("old")
    git("add", "environment.py")
    git("commit", "--quiet", "--no-verify", "--message", "Second")
    clean = git("rev-parse", "--short=12", "HEAD")
    assert commit() == clean
    (package / "environment.py").write_text("new")
    assert commit() == f"{clean}-dirty"


@pytest.mark.parametrize("ignored", [True, False])
def test_a_repository_that_surrounds_an_installed_package_is_not_its_commit(package, git, ignored):
    (package / "environment.py").write_text("installed")
    if ignored:
        (package / ".gitignore").write_text("environment.py\n")
    assert commit() == "unknown (installed, not a checkout)"


def test_a_hook_of_another_repository_does_not_lend_its_commit(package, git, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(package / ".git"))
    monkeypatch.setattr(module, "__file__", str(package.parent / "environment.py"))
    assert commit().startswith("unknown")


def test_without_checkout_or_git_the_commit_is_unknown(package, monkeypatch):
    assert commit().startswith("unknown")
    monkeypatch.setenv("PATH", str(package))
    assert commit().startswith("unknown")


def test_a_given_commit_takes_precedence(monkeypatch):
    monkeypatch.setenv("MVAR_COMMIT", "abc")
    assert commit() == "abc"


def test_memory_is_read_in_kib(tmp_path, monkeypatch):
    status = tmp_path / "status"
    monkeypatch.setattr(module, "_STATUS", status)
    assert resident_bytes() is None
    status.write_text("Name:\tpython\nVmHWM:\t     900 kB\nVmRSS:\t     700 kB\n")
    assert resident_bytes() == 700 * 1024
    assert peak_resident_bytes() == 900 * 1024


@pytest.mark.skipif(not module._CLEAR_REFS.exists(), reason="only Linux can reset the peak")
def test_the_peak_falls_when_reset():
    """In a process of its own: a long one's memory may be paged out and in, which moves what is resident."""
    size = 256 * 2**20
    script = (
        "from mvar_models.environment import peak_resident_bytes, reset_peak_resident\n"
        f"held = b'x' * {size}\n"
        "print(peak_resident_bytes())\n"
        "del held\n"
        "print(peak_resident_bytes())\n"
        "reset_peak_resident()\n"
        "print(peak_resident_bytes())\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    with_it, after, reset = map(int, found.stdout.split())
    assert with_it >= size
    # The kernel counts in batches per thread, so even an unchanged peak may read a little lower.
    assert after > with_it - size // 8, "a peak outlives what was held"
    assert reset < with_it - size // 2


def test_a_module_that_is_there_is_returned():
    assert require("json", "plots") is json
    assert require("os.path", "plots") is sys.modules["os.path"]


def test_an_absent_module_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"matplotlib.*\[plots\]"):
        require("matplotlib", "plots")


def test_a_module_that_lacks_its_own_dependency_says_which(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import missing_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"half_installed.*missing_dependency.*\[plots\]"):
        require("half_installed", "plots")


def test_other_errors_of_a_module_are_its_own(tmp_path, monkeypatch):
    """An installed module with a bug must not be reported as absent."""
    (tmp_path / "broken_inside.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        require("broken_inside", "plots")


@pytest.mark.parametrize("size, batch", [(10, 4), (7, 7), (3, 8)])
def test_every_epoch_sees_every_example_once(size, batch):
    drawn = np.concatenate([batch_members(5, step, batch, size) for step in range(3 * size)])
    for epoch in range(len(drawn) // size):
        assert sorted(drawn[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert not np.array_equal(drawn[:size], drawn[size : 2 * size]) or size < 4


def test_streams_are_independent_of_each_other():
    draws = {tuple(generator(s, p, t).integers(0, 2**31, 4)) for s in (0, 1) for p in Purpose for t in (0, 1)}
    assert len(draws) == 4 * len(Purpose)
