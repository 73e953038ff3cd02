"""The site builds without a warning, which also reads every docstring of the reference."""

import os
import subprocess
import sys

import pytest

from pages import ROOT


def test_site_builds_strictly(tmp_path):
    pytest.importorskip("mkdocstrings", reason="needs the extra `docs`; `make docs` does the same")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "SpatialMarkovAttention" in (tmp_path / "api.html").read_text()
