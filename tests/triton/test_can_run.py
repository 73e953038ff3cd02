"""Inputs and GPUs that the kernels do not take are refused with the reason."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from mvar_kernels.backends import AttentionCall
from mvar_kernels.dispatch import load

from kernel_cases import PYRAMID_DIGITS


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
        cwd=Path(__file__).parents[2],
    )
    assert "backend 'triton' cannot run here: CPU tensors need TRITON_INTERPRET=1" in done.stdout


def test_gpus_without_bfloat16_products_are_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla T4")
    monkeypatch.setattr(torch.version, "hip", None)
    query = SimpleNamespace(dtype=torch.float16, device=torch.device("cuda", 0), is_cuda=True)
    call = AttentionCall(query, query, query, None, PYRAMID_DIGITS.neighborhood(), 1.0)
    reason = load("triton").can_run(call)
    assert "Tesla T4" in reason and "8.0" in reason
