"""Commands, flags, files and links that README and docs name exist, and the site builds."""

import importlib.util
import os
import re
import subprocess
import sys

import click
import pytest

from mvar_models.cli.main import main

from pages import PAGES, ROOT, anchors, commands, links

ALL = [(page, words) for page in PAGES for words in commands(page)]
MAKE_TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.M))


def _flags(command: click.Command) -> set[str]:
    return {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)} | {"--help"}


def _mvar_commands():
    """(page, words after `mvar`), whether typed as `mvar` or run by torchrun."""
    for page, words in ALL:
        if words[0] == "mvar":
            yield page, words[1:]
        elif "mvar_models" in words:
            yield page, words[words.index("mvar_models") + 1 :]


def test_mvar_commands_and_flags_exist():
    context = click.Context(main)
    seen = list(_mvar_commands())
    for page, (name, *rest) in seen:
        command = main.get_command(context, name)
        assert command is not None, f"{page.name}: there is no `mvar {name}`"
        for flag in (word.split("=")[0] for word in rest if word.startswith("-")):
            assert flag in _flags(command), f"{page.name}: `mvar {name}` has no {flag}"
    assert len(seen) > 20


def test_flags_in_running_text_exist():
    """A lone flag, such as `--keep`, belongs to some command of ours or of the benchmarks."""
    context = click.Context(main)
    known = set().union(*(_flags(main.get_command(context, name)) for name in main.list_commands(context)))
    for source in ("benchmarks", "mvar_kernels"):
        for path in (ROOT / source).rglob("*.py"):
            known |= set(re.findall(r"--[a-z][\w-]+", path.read_text()))
    known.add("--benchmark-compare")  # of pytest-benchmark
    for page in PAGES:
        for span in re.findall(r"`(--[^`\n]+)`", page.read_text()):
            for flag in re.findall(r"--[a-z][\w-]+", span):
                assert flag in known, f"{page.name}: nothing has a flag {flag}"


def test_make_targets_exist():
    seen = {(page.name, words[1]) for page, words in ALL if words[0] == "make"}
    assert {("README.md", "demo"), ("README.md", "test")} <= seen
    assert {(page, target) for page, target in seen if target not in MAKE_TARGETS} == set()


@pytest.mark.parametrize("module", sorted({w[2] for _, w in ALL if w[:2] == ["python", "-m"]}))
def test_modules_that_are_run_exist(module):
    assert importlib.util.find_spec(module) is not None


def test_scripts_and_test_files_that_are_named_exist():
    paths = [word for _, words in ALL for word in words if "/" in word and word.endswith((".py", ".sh"))]
    paths += [p for page in PAGES for p in re.findall(r"`([\w/-]+/[\w.-]+\.(?:py|sh|md))`", page.read_text())]
    # NAME stands for what a contributor adds.
    assert [path for path in paths if "NAME" not in path and not (ROOT / path).is_file()] == []
    assert len(paths) >= 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in links(page):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name} links to {target}"
        assert there.is_relative_to(ROOT), f"{page.name} links out of the repository: {target}"
        if anchor:
            assert anchor in anchors(there), f"{page.name} links to a heading that is not there: {target}"


def test_every_page_is_in_the_navigation():
    """A page that mkdocs.yml does not list would be built and never found."""
    listed = re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(listed) == sorted(page.name for page in PAGES if page.parent == ROOT / "docs")


def test_site_builds_strictly(tmp_path):
    pytest.importorskip("mkdocstrings", reason="needs the extra `docs`; `make docs` does the same")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "SpatialMarkovAttention" in (tmp_path / "api.html").read_text()
