"""What is refused with its reason, and launches inside CUDA graphs."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mvar_kernels import Pyramid, SpatialMarkovAttention, pyramid_markov_attn
from mvar_kernels.backends import AttentionCall
from mvar_kernels.dispatch import load

from kernel_cases import PYRAMID_DIGITS, assert_close, draw_inputs
from triton_support import DEVICE


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


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_cuda_graphs_replay_what_was_called_before():
    """A first call builds tables and is refused in a capture, later ones give the same bits."""
    pyramid = Pyramid((2, 3, 9), 3)  # of no other test
    inputs = draw_inputs(pyramid.neighborhood(), dim=64, dtype=torch.float16, device=DEVICE)
    leaves = [tensor.requires_grad_() for tensor in inputs[:3]]

    def run():
        out = pyramid_markov_attn(*leaves, pyramid, backend="triton")
        return [out.detach(), *torch.autograd.grad(out, leaves, inputs[4])]

    stream = torch.cuda.Stream()
    first_call = pytest.raises(RuntimeError, match="call once with these shapes before the capture")
    with torch.cuda.stream(stream), first_call, torch.cuda.graph(torch.cuda.CUDAGraph()):
        run()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        eager = run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(first, second) for first, second in zip(eager, captured))


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_compiled_with_cuda_graphs():
    module = SpatialMarkovAttention(64, 2, 5).to(DEVICE)
    compiled = torch.compile(module, mode="reduce-overhead", fullgraph=True)
    for _ in range(4):
        x = torch.randn(2, 10, 11, 64, device=DEVICE, requires_grad=True)
        torch.compiler.cudagraph_mark_step_begin()
        out = compiled(x)
        (dx,) = torch.autograd.grad(out.sum(), x)
        expected = module(x)
        assert_close(out, expected, 1e-3, "out")
        assert_close(dx, torch.autograd.grad(expected.sum(), x)[0], 1e-3, "dx")
