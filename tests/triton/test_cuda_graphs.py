"""Launches inside CUDA graphs, captured by hand and by torch.compile."""

import pytest
import torch

from mvar_kernels import Pyramid, SpatialMarkovAttention, pyramid_markov_attn

from kernel_cases import assert_close, draw_inputs
from triton_support import DEVICE


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
