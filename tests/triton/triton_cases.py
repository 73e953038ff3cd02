"""Cases of the triton backend: in the interpreter, which must be chosen before the first import, or on a GPU. Run through test_triton.py."""

import os
import random
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from mvar_kernels import Pyramid, SpatialMarkovAttention, ops, pyramid_markov_attn, spatial_markov_attn
from mvar_kernels.dispatch import load
from mvar_kernels.pyramid import Neighborhood

from kernel_cases import (
    PYRAMID_256,
    PYRAMID_DIGITS,
    assert_close,
    assert_right_with_one_operand_alone,
    assert_windows_in_slices,
    assert_within_twice_plain_pytorch,
    draw_inputs,
    in_float64,
    random_grid_neighborhood,
    random_head,
    random_neighborhood,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = [torch.float16, torch.bfloat16] if DEVICE == "cuda" else [torch.float16]
# Relative to the largest magnitude; the comparison with float64 covers rounding of inputs' types only where they are exact, as here.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
NAMES = ("dq", "dk", "dv", "dlogit_scale")


def drawn_seed(index):
    """A fresh seed a run, printed, or the one in MVAR_TEST_SEED."""
    seed = int(os.environ.get("MVAR_TEST_SEED", random.SystemRandom().randrange(2**31)))
    print(f"MVAR_TEST_SEED={seed}, part {index}")
    return seed + index


def compare(neighborhood, scale=0.3, use_lse=True, **options):
    """Forward and backward against the oracle in float64."""
    inputs = draw_inputs(neighborhood, device=DEVICE, **options)
    query, key, value, logit_scale, grad_out, grad_lse = inputs
    backend = load("triton")
    assert backend.can_run(query, key, value, logit_scale, neighborhood) is None
    out, lse = backend.forward(query, key, value, logit_scale, neighborhood, scale)
    grads = backend.backward(
        grad_out, grad_lse if use_lse else None, query, key, value, out, lse, logit_scale, neighborhood, scale
    )
    expected_out, expected_lse, expected = in_float64(inputs, neighborhood, scale, use_lse)
    tolerance = TOLERANCE[query.dtype]
    for name, actual, right in (
        ("out", out, expected_out),
        ("lse", lse, expected_lse),
        *zip(NAMES, grads, expected),
    ):
        if right is not None:
            assert_close(
                actual, right, tolerance * max(1.0, right.abs().max().item()), f"{name} of {neighborhood}"
            )
    return out, lse, grads


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("pyramid", [PYRAMID_256, PYRAMID_DIGITS], ids=["256px", "digits"])
def test_pyramids(pyramid, cosine):
    compare(pyramid.neighborhood(), batch=1, cosine=cosine, dim=16)


def test_causal():
    compare(PYRAMID_DIGITS.causal_neighborhood(), batch=1)


@pytest.mark.parametrize("index", range(10))
def test_odd_shapes(index):
    seed = drawn_seed(index)
    rng = random.Random(seed)
    neighborhood = random_neighborhood(rng)
    compare(neighborhood, batch=rng.randint(1, 2), heads=rng.randint(1, 3), seed=seed, **random_head(rng))


@pytest.mark.parametrize("dim", [1, 7, 16, 33, 64, 80, 128, 200, 256])
def test_head_dimensions(dim):
    compare(
        Neighborhood.of_grids((9, 10), (9, 10), (3, 3)),
        batch=1,
        heads=1,
        dim=dim,
        cosine=dim % 2 == 0,
        scale=dim**-0.5,
    )


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("cosine", [False, True])
def test_half_precision(dtype, cosine):
    compare(PYRAMID_DIGITS.neighborhood(), batch=1, dim=32, dtype=dtype, cosine=cosine, scale=0.2)


@pytest.mark.parametrize("grid, window", [((40, 40), (31, 31)), ((20, 40), (13, 25))])
def test_split_windows(grid, window):
    compare(Neighborhood.of_grids(grid, grid, window), batch=1, heads=1, dim=8, use_lse=False)


@pytest.mark.parametrize("scale", [0.0, -0.5, 1e-20, 30.0])
def test_no_scale_weakens_the_mask(scale):
    compare(PYRAMID_DIGITS.neighborhood(), batch=1, heads=1, scale=scale)


@pytest.mark.parametrize(
    "factor, scale",
    [(0.0, 1.0), (-3.0, 1.0), (100.0, 1.0), (-3.0, 0.0), (3.0, -0.0), (-3.0, -2.0), (-1e-30, 1e-30)],
)
def test_no_factor_weakens_the_mask(factor, scale):
    neighborhood = PYRAMID_DIGITS.neighborhood()
    inputs = list(draw_inputs(neighborhood, batch=1, cosine=True, device=DEVICE))
    inputs[3] = torch.full_like(inputs[3], factor)
    query, key, value, logit_scale, grad_out, _ = inputs
    backend = load("triton")
    out, lse = backend.forward(query, key, value, logit_scale, neighborhood, scale)
    grads = backend.backward(grad_out, None, query, key, value, out, lse, logit_scale, neighborhood, scale)
    expected_out, _, expected = in_float64(inputs, neighborhood, scale, use_lse=False)
    assert_close(out, expected_out, 1e-4, "out")
    for name, actual, right in zip(NAMES, grads, expected):
        assert_close(actual, right, 1e-4 * max(1.0, right.abs().max().item()), name)


def test_zero_vectors_have_finite_gradients():
    neighborhood = PYRAMID_DIGITS.neighborhood()
    query, key, value, logit_scale, grad_out, _ = draw_inputs(
        neighborhood, batch=1, cosine=True, device=DEVICE
    )
    key[:, 5] = 0
    query[:, 9] = 0
    backend = load("triton")
    out, lse = backend.forward(query, key, value, logit_scale, neighborhood, 1.0)
    grads = backend.backward(grad_out, None, query, key, value, out, lse, logit_scale, neighborhood, 1.0)
    assert all(tensor.isfinite().all() for tensor in (out, lse, *grads))


def test_packed_views_and_expanded_gradient():
    neighborhood = PYRAMID_DIGITS.neighborhood()
    query, key, value, _, _, _ = draw_inputs(neighborhood, packed=True, device=DEVICE)
    assert not query.is_contiguous()
    grad_out = torch.ones(1, device=DEVICE).expand(query.shape)
    backend = load("triton")
    out, lse = backend.forward(query, key, value, None, neighborhood, 0.3)
    grads = backend.backward(grad_out, None, query, key, value, out, lse, None, neighborhood, 0.3)
    copies = [tensor.contiguous() for tensor in (query, key, value)]
    again = backend.forward(*copies, None, neighborhood, 0.3)
    assert torch.equal(out, again[0]) and torch.equal(lse, again[1])
    for first, second in zip(
        grads[:3], backend.backward(grad_out.contiguous(), None, *copies, out, lse, None, neighborhood, 0.3)
    ):
        assert torch.equal(first, second)


@pytest.mark.parametrize("cosine", [False, True])
def test_nan_around_the_inputs_never_leaks(cosine):
    """Inputs are islands in NaN memory; padded tokens, heads and columns must not be read into a result."""
    neighborhood = PYRAMID_DIGITS.neighborhood()
    *plain, _ = draw_inputs(neighborhood, heads=2, dim=5, cosine=cosine, device=DEVICE)
    factor, backend = plain[3], load("triton")
    expected = backend.forward(*plain[:3], factor, neighborhood, 0.3)
    islands = []
    for tensor in (*plain[:3], plain[4]):
        b, length, h, d = tensor.shape
        sea = torch.full((b + 2, length + 40, h + 2, d + 11), float("nan"), device=DEVICE)
        sea[1:-1, 20:-20, 1:-1, 4 : 4 + d] = tensor
        islands.append(sea[1:-1, 20:-20, 1:-1, 4 : 4 + d])
    out, lse = backend.forward(*islands[:3], factor, neighborhood, 0.3)
    assert torch.equal(out, expected[0]) and torch.equal(lse, expected[1])
    grads = backend.backward(islands[3], None, *islands[:3], out, lse, factor, neighborhood, 0.3)
    right = backend.backward(plain[4], None, *plain[:3], *expected, factor, neighborhood, 0.3)
    for first, second in zip(grads, right):
        assert first is None or torch.equal(first, second)


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("far_axis", ["tokens", "head dimension"])
def test_offsets_past_two_to_the_31(far_axis, cosine):
    """Elements 80 or 320 million apart; memory that is never touched costs nothing."""
    neighborhood = Neighborhood.of_grids((5, 6), (5, 6), (3, 3))
    *plain, _ = draw_inputs(neighborhood, batch=1, heads=1, dtype=torch.float16, cosine=cosine, device=DEVICE)
    strides = (0, 80_000_000, 0, 1) if far_axis == "tokens" else (0, 8, 0, 320_000_000)
    memory = torch.empty(2_400_000_000 + 1_000, dtype=torch.float16, device=DEVICE)
    far = []
    for index, tensor in enumerate((*plain[:3], plain[4])):
        far.append(
            memory.as_strided(
                tensor.shape, strides, 240 * index if far_axis == "head dimension" else 8 * index
            )
        )
        far[-1].copy_(tensor)
    assert sum((size - 1) * stride for size, stride in zip(far[0].shape, far[0].stride())) > 2**31
    backend, factor = load("triton"), plain[3]
    out, lse = backend.forward(*far[:3], factor, neighborhood, 0.3)
    grads = backend.backward(far[3], None, *far[:3], out, lse, factor, neighborhood, 0.3)
    expected = backend.forward(*plain[:3], factor, neighborhood, 0.3)
    assert torch.equal(out, expected[0]) and torch.equal(lse, expected[1])
    again = backend.backward(plain[4], None, *plain[:3], *expected, factor, neighborhood, 0.3)
    assert all(torch.equal(first, second) for first, second in zip(grads[:3], again[:3]))


@pytest.mark.skipif(DEVICE == "cpu", reason="70,000 programs take minutes in the interpreter")
def test_more_than_65535_heads():
    compare(Neighborhood.of_grids((2, 3), (2, 3), (1, 3)), batch=700, heads=100, dim=16)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_cuda_graphs_replay_what_was_called_before():
    """Tables are made by the first call, which says so inside a capture; afterwards a graph gives the same bits, forward and backward."""
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
        right = module(x)
        assert_close(out, right, 1e-3, "out")
        assert_close(dx, torch.autograd.grad(right.sum(), x)[0], 1e-3, "dx")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_tensors_gpu_is_used_when_another_is_current():
    neighborhood = PYRAMID_DIGITS.neighborhood()
    with torch.cuda.device(0):
        here = draw_inputs(neighborhood, device="cuda:1")
        out, _ = load("triton").forward(*here[:3], None, neighborhood, 0.3)
    assert out.device.index == 1
    assert_close(out, in_float64(here, neighborhood, 0.3)[0], 1e-5, "out")


@pytest.mark.parametrize("cosine", [False, True])
def test_every_element_is_written(monkeypatch, cosine):
    """torch.empty filled with NaN: whatever a kernel does not write shows."""
    real = torch.empty

    def poisoned(*args, **kwargs):
        tensor = real(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)
    for neighborhood in (PYRAMID_DIGITS.neighborhood(), Neighborhood.of_grids((2, 3), (9, 12), (2, 2))):
        query, key, value, factor, grad_out, _ = draw_inputs(neighborhood, cosine=cosine, device=DEVICE)
        backend = load("triton")
        out, lse = backend.forward(query, key, value, factor, neighborhood, 0.3)
        grads = backend.backward(grad_out, None, query, key, value, out, lse, factor, neighborhood, 0.3)
        assert all(tensor.isfinite().all() for tensor in (out, lse, *grads) if tensor is not None)
        unseen = ~neighborhood.mask().any(0)
        assert not grads[1][:, unseen.to(DEVICE)].any() and not grads[2][:, unseen.to(DEVICE)].any()


def test_changing_one_scale_leaves_the_others_bit_identical():
    """Outputs and gradients."""
    pyramid = PYRAMID_DIGITS
    query, key, value, logit_scale, grad_out, _ = draw_inputs(
        pyramid.neighborhood(), cosine=True, device=DEVICE
    )

    def results(*operands):
        leaves = [tensor.detach().requires_grad_() for tensor in operands]
        out = pyramid_markov_attn(*leaves, pyramid, logit_scale=logit_scale, backend="triton")
        return [out.detach(), *torch.autograd.grad(out, leaves, grad_out)]

    before = results(query, key, value)
    for scale in range(pyramid.num_scales):
        changed = [tensor.clone() for tensor in (query, key, value)]
        for tensor in changed:
            tensor[:, pyramid.scale_slice(scale)] *= -37
        inside = torch.zeros(pyramid.length, dtype=torch.bool, device=DEVICE)
        inside[pyramid.scale_slice(scale)] = True
        after = results(*changed)
        for first, second in zip(before, after):
            assert torch.equal(first[:, ~inside], second[:, ~inside])
        assert not torch.equal(before[0][:, inside], after[0][:, inside])


def test_autograd_through_the_public_functions_is_deterministic():
    pyramid = Pyramid((2, (3, 5), 9), 3)
    results = []
    for _ in range(2):
        query, key, value, logit_scale, grad_out, _ = draw_inputs(
            pyramid.neighborhood(), cosine=True, device=DEVICE
        )
        leaves = [tensor.requires_grad_() for tensor in (query, key, value, logit_scale)]
        out, lse = pyramid_markov_attn(
            *leaves[:3], pyramid, logit_scale=leaves[3], return_lse=True, backend="triton"
        )
        (out * grad_out).sum().backward(retain_graph=True)
        lse.sum().backward()
        results.append([out.detach(), *[leaf.grad for leaf in leaves]])
    assert all(torch.equal(first, second) for first, second in zip(*results))


@pytest.mark.parametrize("part", range(4))
def test_windows_exactly(part):
    """With q = 0 and one-hot values the output is the window itself; one-hot dO gives dv. 200 shapes in four parts, to several chunks of keys."""
    seed = drawn_seed(part)
    rng = random.Random(seed)
    for index in range(50):
        assert_windows_in_slices(random_grid_neighborhood(rng, largest=12), "triton", DEVICE, f"{index}")


@pytest.mark.parametrize("grid, window", [((24, 24), (7, 7)), ((16, 18), (15, 9)), ((40, 9), (31, 3))])
def test_windows_exactly_where_tiles_are_interior_or_split(grid, window):
    assert_windows_in_slices(Neighborhood.of_grids(grid, grid, window), "triton", DEVICE, f"{grid} {window}")


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("factor", [None, 10.0, 100.0])
def test_error_is_within_twice_that_of_plain_pytorch(dtype, factor):
    # NumPy, which multiplies in the interpreter, rounds a product by the shape of its operands, and so differently in forward and backward:
    # logits of 100 differ by a few 1e-5, and every weight with them. float16 and a GPU hide or do not have this.
    rounding = 3e-5 if DEVICE == "cpu" and factor == 100.0 and dtype == torch.float32 else 0.0
    neighborhood = Pyramid((2, 5, 12), 5, 1).neighborhood()
    assert_within_twice_plain_pytorch("triton", neighborhood, dtype, factor, device=DEVICE, rounding=rounding)


@pytest.mark.parametrize("which", range(4))
def test_each_operand_alone(which):
    assert_right_with_one_operand_alone("triton", which, device=DEVICE)


@pytest.mark.parametrize("cosine", [False, True])
def test_opcheck(cosine):
    neighborhood = Pyramid((2, 5), 3).neighborhood()
    query, key, value, logit_scale, *_ = draw_inputs(neighborhood, batch=1, cosine=cosine, device=DEVICE)
    leaves = [None if t is None else t.detach().requires_grad_() for t in (query, key, value, logit_scale)]
    torch.library.opcheck(ops.attention, (*leaves, neighborhood.encode(), 0.3, "triton"))


def test_a_pyramid_equals_its_scales_one_by_one():
    inputs = draw_inputs(PYRAMID_DIGITS.neighborhood(), dim=16, device=DEVICE)
    whole = pyramid_markov_attn(*inputs[:3], PYRAMID_DIGITS, backend="triton")
    for index, (side, window) in enumerate(zip(PYRAMID_DIGITS.sides, PYRAMID_DIGITS.windows)):
        own = PYRAMID_DIGITS.scale_slice(index)
        grids = [tensor[:, own].unflatten(1, side) for tensor in inputs[:3]]
        alone = spatial_markov_attn(*grids, window, backend="triton")
        assert_close(whole[:, own], alone.flatten(1, 2), 5e-6, f"scale {index}")


@pytest.mark.parametrize("short", [0.0, 1e-13, 1e-9, 1e-6])
def test_short_vectors_leave_cosine_attention_finite_and_right(short):
    """What hides a score is divided by the norms too and overflows; rows whose first chunk of keys is all hidden must stand that."""
    neighborhood = Neighborhood.of_grids((24, 24), (24, 24), (7, 7))
    inputs = list(draw_inputs(neighborhood, batch=1, heads=1, dim=16, cosine=True, device=DEVICE))
    inputs[0][:, 15 * 24 + 8] *= short
    inputs[1][:, :200] *= short
    inputs[3] = torch.full_like(inputs[3], 10.0)
    query, key, value, logit_scale, grad_out, _ = inputs
    backend = load("triton")
    out, lse = backend.forward(query, key, value, logit_scale, neighborhood, 1.0)
    grads = backend.backward(grad_out, None, query, key, value, out, lse, logit_scale, neighborhood, 1.0)
    expected_out, expected_lse, expected = in_float64(inputs, neighborhood, 1.0, use_lse=False)
    assert_close(out, expected_out, 1e-5, "out")
    assert_close(lse, expected_lse, 1e-5, "lse")
    for name, actual, right in zip(NAMES, grads, expected):
        # Gradients of short vectors are as large as their inverse norms: each row relative to its largest value.
        size = (
            right.abs().amax(-1, keepdim=True).clamp_min(1) if right.dim() > 1 else right.abs().clamp_min(1)
        )
        assert_close(actual.cpu().double() / size, right / size, 1e-4, name)


def test_tf32_is_taken_from_either_setting_of_torch():
    """In a process of its own: torch refuses to have its two interfaces mixed."""
    code = """
import sys, torch
from mvar_kernels.backends.triton.launch import _tf32_allowed
assert not _tf32_allowed()
matmul = torch.backends.cuda.matmul
if sys.argv[1] == "new":
    matmul.fp32_precision = "tf32"
else:
    matmul.allow_tf32 = True
assert _tf32_allowed()
"""
    names = ["old", "new"] if hasattr(torch.backends.cuda.matmul, "fp32_precision") else ["old"]
    for name in names:
        subprocess.run([sys.executable, "-c", code, name], check=True)


def test_gpus_without_bfloat16_products_are_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla T4")
    monkeypatch.setattr(torch.version, "hip", None)
    query = SimpleNamespace(dtype=torch.float16, device=torch.device("cuda", 0), is_cuda=True)
    reason = load("triton").can_run(query, query, query, None, PYRAMID_DIGITS.neighborhood())
    assert "Tesla T4" in reason and "8.0" in reason
