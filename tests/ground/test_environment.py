"""The commit that a result is recorded with, and the memory of this process."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from mvar_models import environment as module
from mvar_models.environment import (
    commit,
    environment,
    peak_resident_bytes,
    resident_bytes,
)


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
