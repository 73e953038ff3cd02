"""The triton kernels: on a GPU where there is one, else in the interpreter, in a process of its own (TRITON_INTERPRET=1 must precede import)."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
GROUPS = (
    "pyramids or causal",
    "odd_shapes or split",
    "head_dimensions",
    "not (pyramids or causal or odd_shapes or split or head_dimensions)",
)

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (it exists for Linux only)"
)


def run_cases(which, interpreted):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE.parent / "support")]),
    }
    environment.pop("PYTEST_XDIST_WORKER", None)
    if interpreted:
        environment["TRITON_INTERPRET"] = "1"
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(HERE / "triton_cases.py"),
        "-q",
        "-k",
        which,
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE.parents[1])
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0 and passed, done.stdout[-6000:] + done.stderr[-2000:]
    return int(passed[1])


@needs_triton
@pytest.mark.parametrize("which", GROUPS)
def test_cases(which):
    assert run_cases(which, interpreted=not torch.cuda.is_available()) > 0


@needs_triton
def test_cpu_tensors_without_the_interpreter_are_refused_with_the_reason():
    code = (
        "import torch, mvar_kernels as m\n"
        "x = torch.zeros(1, 4, 4, 1, 8)\n"
        "try: m.spatial_markov_attn(x, x, x, 3, backend='triton')\n"
        "except RuntimeError as error: print(error)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
        cwd=HERE.parents[1],
    )
    assert "backend 'triton' cannot run here: CPU tensors need TRITON_INTERPRET=1" in done.stdout
