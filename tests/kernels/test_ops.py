"""The operators: schema and fakes (opcheck), compilation, FLOPs, autocast, and what importing them costs."""

import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.backends.common import aot_autograd
from torch._inductor import aoti_compile_and_package, aoti_load_package
from torch.export import Dim
from torch.utils.flop_counter import FlopCounterMode

from mvar_kernels import SpatialMarkovAttention, ops, pyramid_markov_attn, spatial_markov_attn

from chosen_cases import EVERYTHING
from kernel_cases import CPU_BACKENDS, PYRAMID_256, PYRAMID_DIGITS, assert_close, draw_inputs


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("backend", ["tiled", "sdpa"])
def test_opcheck(cosine, backend):
    neighborhood = PYRAMID_DIGITS.neighborhood()
    query, key, value, logit_scale, *_ = draw_inputs(neighborhood, batch=1, cosine=cosine)
    leaves = [None if t is None else t.detach().requires_grad_() for t in (query, key, value, logit_scale)]
    torch.library.opcheck(ops.attention, (*leaves, neighborhood.encode(), 0.3, backend))


def counted_graphs():
    """Return a list, and a backend for torch.compile that adds each graph to it and runs it as it is."""
    torch._dynamo.reset()
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    return graphs, counting


def test_compiles_whole_forward_and_backward_without_recompiling_for_batches():
    """A changed batch size costs at most the one recompile of dynamic shapes."""
    graphs, counting = counted_graphs()

    module = SpatialMarkovAttention(16, 2, kernel_size=3, cosine=True)
    compiled = torch.compile(module, backend=aot_autograd(fw_compiler=counting), fullgraph=True)
    for batch in (2, 3, 4, 7):
        features = torch.randn(batch, 6, 6, 16, requires_grad=True)
        out = compiled(features)
        out.sum().backward()
        assert_close(out, module(features), 1e-5, "compiled output")
        assert features.grad.isfinite().all()
    forward_graphs = len(graphs) - sum("tangents" in str(graph.graph) for graph in graphs)
    assert forward_graphs <= 2, f"{forward_graphs} forward graphs for four batch sizes"


@pytest.mark.parametrize("grid", [(6, 6), (20, 20)], ids=["sdpa", "tiled"])
def test_other_batches_cost_at_most_one_recompile(grid):
    """`scale` stays the same, as torch.compile takes Python floats for constants of the graph."""
    graphs, counting = counted_graphs()

    @torch.compile(backend=counting, fullgraph=True)
    def attend(query, key, value):
        return spatial_markov_attn(query, key, value, 3, scale=0.3)

    for batch in (2, 3, 4, 5, 9):
        query, key, value = (torch.randn(batch, *grid, 2, 8) for _ in range(3))
        assert_close(
            attend(query, key, value), spatial_markov_attn(query, key, value, 3, scale=0.3), 1e-6, "compiled"
        )
    assert len(graphs) <= 2, f"{len(graphs)} graphs for five batch sizes"


@pytest.mark.parametrize("dynamic", [True, None])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "dilation": 2, "is_causal": (True, False)}])
def test_any_number_of_grids_costs_at_most_one_recompile(dynamic, options):
    """Also grids smaller than the window, of which windows are all; `int()` of a side made each a graph."""
    graphs, counting = counted_graphs()
    backend = aot_autograd(fw_compiler=counting, bw_compiler=counting)

    @torch.compile(backend=backend, fullgraph=True, dynamic=dynamic)
    def attend(query, key, value):
        return spatial_markov_attn(query, key, value, 7, scale=0.3, **options)

    sides = torch.Generator().manual_seed(0)
    for height, width in torch.randint(3, 20, (32, 2), generator=sides).tolist():
        operands = [torch.randn(2, height, width, 2, 8, requires_grad=True) for _ in range(3)]
        found, expected = attend(*operands), spatial_markov_attn(*operands, 7, scale=0.3, **options)
        assert torch.equal(found, expected)
        gradients = (torch.autograd.grad(out.square().sum(), operands) for out in (found, expected))
        assert all(map(torch.equal, *gradients))
    assert len(graphs) <= (2 if dynamic else 4), f"{len(graphs)} forward and backward graphs for 32 grids"


class Windows(torch.nn.Module):
    def forward(self, query, key, value):
        return spatial_markov_attn(query, key, value, 7)


def exported_windows():
    """Return the attention exported for any batch and grid."""
    sizes = {0: Dim("batch"), 1: Dim("height"), 2: Dim("width")}
    example = tuple(torch.randn(2, 12, 13, 2, 8) for _ in range(3))
    return torch.export.export(Windows(), example, dynamic_shapes=(sizes,) * 3)


def assert_same_on_other_grids(module):
    for batch, height, width in ((1, 5, 20), (3, 9, 7), (4, 30, 3)):
        operands = [torch.randn(batch, height, width, 2, 8) for _ in range(3)]
        assert torch.equal(module(*operands), spatial_markov_attn(*operands, 7))


def test_exports_for_any_batch_and_grid():
    assert_same_on_other_grids(exported_windows().module())


@pytest.mark.skipif(not EVERYTHING, reason="compiles C++ for half a minute; MVAR_EVERYTHING=1 does")
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
def test_runs_ahead_of_time_compiled(tmp_path):
    """PyTorch 2.6 cannot write symbols in lists of ints; 2.13 does."""
    package = aoti_compile_and_package(exported_windows(), package_path=str(tmp_path / "windows.pt2"))
    assert_same_on_other_grids(aoti_load_package(package))


def test_a_factor_that_changes_costs_one_recompile_as_an_operand():
    """A float `scale` is a constant of the graph; as part of the query or `logit_scale` it is a value."""
    graphs, counting = counted_graphs()

    @torch.compile(backend=counting, fullgraph=True)
    def attend(query, key, value, factor):
        plain = spatial_markov_attn(query * factor, key, value, 3, scale=1.0)
        return plain, spatial_markov_attn(query, key, value, 3, logit_scale=torch.ones(2) * factor)

    query, key, value = (torch.randn(2, 6, 6, 2, 8) for _ in range(3))
    for factor in (0.1, 0.2, 0.3, 0.7):
        plain, cosine = attend(query, key, value, factor)
        assert_close(plain, spatial_markov_attn(query, key, value, 3, scale=factor), 1e-5, "plain")
        assert_close(
            cosine,
            spatial_markov_attn(query, key, value, 3, logit_scale=torch.full((2,), factor)),
            1e-5,
            "cosine",
        )
    assert len(graphs) <= 2, f"{len(graphs)} graphs for four factors"


def test_flops_are_those_of_the_attended_pairs():
    query, key, value, *_ = draw_inputs(PYRAMID_256.neighborhood(), batch=2, heads=3, dim=8)
    query.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        pyramid_markov_attn(query, key, value, PYRAMID_256).sum().backward()
    assert counter.get_total_flops() == 14 * PYRAMID_256.attended_pairs() * 2 * 3 * 8


def test_autocast_does_what_sdpa_s_does():
    query, key, value, logit_scale, *_ = draw_inputs(PYRAMID_DIGITS.neighborhood(), cosine=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, lse = pyramid_markov_attn(
            query, key, value, PYRAMID_DIGITS, logit_scale=logit_scale, return_lse=True
        )
        theirs = F.scaled_dot_product_attention(query, key, value)
        mixed = pyramid_markov_attn(query.bfloat16(), key, value, PYRAMID_DIGITS)
        precise = pyramid_markov_attn(query.double(), key.double(), value.double(), PYRAMID_DIGITS)
    assert (
        ours.dtype == theirs.dtype == mixed.dtype == torch.bfloat16
        and lse.dtype == torch.float32
        and precise.dtype == torch.float64
    )
    rounded = [tensor.bfloat16().double() for tensor in (query, key, value)]
    true, true_lse = pyramid_markov_attn(
        *rounded, PYRAMID_DIGITS, logit_scale=logit_scale, return_lse=True, backend="reference"
    )
    for backend in CPU_BACKENDS:  # what they compute inside is not rounded to bfloat16 once more
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out, lse = pyramid_markov_attn(
                query, key, value, PYRAMID_DIGITS, logit_scale=logit_scale, return_lse=True, backend=backend
            )
        assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32
        assert_close(lse, true_lse, 1e-5 if backend == "reference" else 0.05, "lse")
        assert_close(out, true, 0.02, "out")
    # logit_scale is not cast: a factor that bfloat16 cannot hold still counts.
    fine = torch.full_like(logit_scale, 1.001)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, first = pyramid_markov_attn(
            query, key, value, PYRAMID_DIGITS, logit_scale=fine, return_lse=True, backend="reference"
        )
        _, second = pyramid_markov_attn(
            query,
            key,
            value,
            PYRAMID_DIGITS,
            logit_scale=torch.ones_like(fine),
            return_lse=True,
            backend="reference",
        )
    assert not torch.equal(first, second)


_WITHOUT_TRITON = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == "triton" or name.startswith("triton."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
before = set(sys.modules)
import mvar_kernels, torch
loaded = {name.split(".")[0] for name in set(sys.modules) - before}
assert not loaded & {"triton", "huggingface_hub", "matplotlib", "click", "PIL", "sklearn"}, loaded
x = torch.randn(1, 5, 5, 2, 8, requires_grad=True)
mvar_kernels.spatial_markov_attn(x, x, x, 3).sum().backward()
import importlib.util
importlib.util.find_spec = lambda name, package=None: None
try:
    mvar_kernels.spatial_markov_attn(x, x, x, 3, backend="triton")
except RuntimeError as error:
    print(error)
"""


def test_everything_but_triton_works_without_triton():
    done = subprocess.run([sys.executable, "-c", _WITHOUT_TRITON], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "triton is not installed" in done.stdout


def test_networks_import_without_hub_cli_or_plots():
    unwanted = "{'huggingface_hub', 'matplotlib', 'click', 'sklearn'}"
    loaded = "{name.split('.')[0] for name in sys.modules}"
    code = f"import sys, mvar_models\nbad = {unwanted} & {loaded}\nassert not bad, bad"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
