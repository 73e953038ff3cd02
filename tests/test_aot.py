"""Forward and backward compile for GPUs that are not here, spill nothing and fit in shared memory."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed (it exists for Linux only)")


@pytest.mark.parametrize("target", ["cuda:80", "cuda:90", "hip:gfx942"])
def test_every_row_compiles_without_spills(target):
    """A process of its own: compiling and interpreting exclude each other."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "mvar_kernels.aot", "--target", target, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode in (0, 1), done.stderr[-3000:]
    results = json.loads(done.stdout)
    problems = [(r["kernel"], r["head_dim"], r["element"], r["cosine"], r["problems"]) for r in results if r["problems"]]
    assert not problems and done.returncode == 0
    assert {r["kernel"] for r in results} == {"forward", "dq", "dkdv"} and len(results) == 36
    assert all(r["tensor_core"] > 0 for r in results if r["element"] == "bf16"), "products should run on tensor cores"
