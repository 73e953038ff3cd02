"""Cases of the triton backend: in the interpreter, which must be chosen before the first import, or on a GPU. Run through test_triton.py."""

import os
import random

import pytest
import torch

from mvar_kernels import Pyramid, pyramid_markov_attn
from mvar_kernels.attention import neighborhood_attn
from mvar_kernels.backends import load
from mvar_kernels.pyramid import Neighborhood

from kernel_cases import (
    PYRAMID_256,
    PYRAMID_DIGITS,
    assert_close,
    assert_windows,
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
    for name, actual, right in (("out", out, expected_out), ("lse", lse, expected_lse), *zip(NAMES, grads, expected)):
        if right is not None:
            assert_close(actual, right, tolerance * max(1.0, right.abs().max().item()), f"{name} of {neighborhood}")
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
    compare(Neighborhood.of_grids((9, 10), (9, 10), (3, 3)), batch=1, heads=1, dim=dim, cosine=dim % 2 == 0, scale=dim**-0.5)


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


@pytest.mark.parametrize("factor", [0.0, -3.0, 100.0])
def test_no_factor_weakens_the_mask(factor):
    neighborhood = PYRAMID_DIGITS.neighborhood()
    inputs = list(draw_inputs(neighborhood, batch=1, cosine=True, device=DEVICE))
    inputs[3] = torch.full_like(inputs[3], factor)
    query, key, value, logit_scale, grad_out, _ = inputs
    backend = load("triton")
    out, lse = backend.forward(query, key, value, logit_scale, neighborhood, 1.0)
    grads = backend.backward(grad_out, None, query, key, value, out, lse, logit_scale, neighborhood, 1.0)
    expected_out, _, expected = in_float64(inputs, neighborhood, 1.0, use_lse=False)
    assert_close(out, expected_out, 1e-4, "out")
    for name, actual, right in zip(NAMES, grads, expected):
        assert_close(actual, right, 1e-4 * max(1.0, right.abs().max().item()), name)


def test_zero_vectors_have_finite_gradients():
    neighborhood = PYRAMID_DIGITS.neighborhood()
    query, key, value, logit_scale, grad_out, _ = draw_inputs(neighborhood, batch=1, cosine=True, device=DEVICE)
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
    for first, second in zip(grads[:3], backend.backward(grad_out.contiguous(), None, *copies, out, lse, None, neighborhood, 0.3)):
        assert torch.equal(first, second)


def test_nan_around_the_inputs_never_leaks():
    """Inputs are islands in NaN memory; padded tokens, heads and columns must not be read into a result."""
    neighborhood = PYRAMID_DIGITS.neighborhood()
    plain = draw_inputs(neighborhood, heads=2, dim=5, device=DEVICE)
    expected = load("triton").forward(*plain[:3], None, neighborhood, 0.3)
    islands = []
    for tensor in (*plain[:3], plain[4]):
        b, length, h, d = tensor.shape
        sea = torch.full((b + 2, length + 40, h + 2, d + 11), float("nan"), device=DEVICE)
        sea[1:-1, 20:-20, 1:-1, 4 : 4 + d] = tensor
        islands.append(sea[1:-1, 20:-20, 1:-1, 4 : 4 + d])
    backend = load("triton")
    out, lse = backend.forward(*islands[:3], None, neighborhood, 0.3)
    assert torch.equal(out, expected[0]) and torch.equal(lse, expected[1])
    grads = backend.backward(islands[3], None, *islands[:3], out, lse, None, neighborhood, 0.3)
    assert all(gradient.isfinite().all() for gradient in grads[:3])


def test_offsets_past_two_to_the_31():
    """Rows 80 million elements apart; memory that is never touched costs nothing."""
    neighborhood = Neighborhood.of_grids((5, 6), (5, 6), (3, 3))
    plain = draw_inputs(neighborhood, batch=1, heads=1, dtype=torch.float16, device=DEVICE)
    gap = 80_000_000
    memory = torch.empty(30 * gap, dtype=torch.float16, device=DEVICE)
    far = []
    for index, tensor in enumerate((*plain[:3], plain[4])):
        far.append(memory.as_strided(tensor.shape, (30 * gap, gap, 8, 1), 8 * index))
        far[-1].copy_(tensor)
    assert far[0].stride(1) * 29 > 2**31
    backend = load("triton")
    out, lse = backend.forward(*far[:3], None, neighborhood, 0.3)
    grads = backend.backward(far[3], None, *far[:3], out, lse, None, neighborhood, 0.3)
    expected = backend.forward(*plain[:3], None, neighborhood, 0.3)
    assert torch.equal(out, expected[0]) and torch.equal(lse, expected[1])
    again = backend.backward(plain[4], None, *plain[:3], *expected, None, neighborhood, 0.3)
    assert all(torch.equal(first, second) for first, second in zip(grads[:3], again[:3]))


@pytest.mark.skipif(DEVICE == "cpu", reason="70,000 programs take minutes in the interpreter")
def test_more_than_65535_heads():
    compare(Neighborhood.of_grids((2, 3), (2, 3), (1, 3)), batch=700, heads=100, dim=16)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_tensors_gpu_is_used_when_another_is_current():
    neighborhood = PYRAMID_DIGITS.neighborhood()
    with torch.cuda.device(0):
        here = draw_inputs(neighborhood, device="cuda:1")
        out, _ = load("triton").forward(*here[:3], None, neighborhood, 0.3)
    assert out.device.index == 1
    assert_close(out, in_float64(here, neighborhood, 0.3)[0], 1e-5, "out")


def test_every_element_is_written(monkeypatch):
    """torch.empty filled with NaN: whatever a kernel does not write shows."""
    real = torch.empty

    def poisoned(*args, **kwargs):
        tensor = real(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)
    for neighborhood in (PYRAMID_DIGITS.neighborhood(), Neighborhood.of_grids((2, 3), (9, 12), (2, 2))):
        query, key, value, _, grad_out, _ = draw_inputs(neighborhood, device=DEVICE)
        backend = load("triton")
        out, lse = backend.forward(query, key, value, None, neighborhood, 0.3)
        grads = backend.backward(grad_out, None, query, key, value, out, lse, None, neighborhood, 0.3)
        assert all(tensor.isfinite().all() for tensor in (out, lse, *grads[:3]))
        unseen = ~neighborhood.mask().any(0)
        assert not grads[1][:, unseen.to(DEVICE)].any() and not grads[2][:, unseen.to(DEVICE)].any()


def test_changing_one_scale_leaves_the_others_bit_identical():
    pyramid = PYRAMID_DIGITS
    query, key, value, logit_scale, _, _ = draw_inputs(pyramid.neighborhood(), cosine=True, device=DEVICE)
    before = pyramid_markov_attn(query, key, value, pyramid, logit_scale=logit_scale, backend="triton")
    for scale in range(pyramid.num_scales):
        changed = [tensor.clone() for tensor in (query, key, value)]
        for tensor in changed:
            tensor[:, pyramid.scale_slice(scale)] *= -37
        after = pyramid_markov_attn(*changed, pyramid, logit_scale=logit_scale, backend="triton")
        same = (before == after).all(dim=(0, 2, 3))
        inside = torch.zeros(pyramid.length, dtype=torch.bool)
        inside[pyramid.scale_slice(scale)] = True
        assert same[~inside.to(DEVICE)].all() and not same[inside.to(DEVICE)].any()


def test_autograd_through_the_public_functions_is_deterministic():
    pyramid = Pyramid((2, (3, 5), 9), 3)
    results = []
    for _ in range(2):
        query, key, value, logit_scale, grad_out, _ = draw_inputs(pyramid.neighborhood(), cosine=True, device=DEVICE)
        leaves = [tensor.requires_grad_() for tensor in (query, key, value, logit_scale)]
        out, lse = pyramid_markov_attn(*leaves[:3], pyramid, logit_scale=leaves[3], return_lse=True, backend="triton")
        (out * grad_out).sum().backward(retain_graph=True)
        lse.sum().backward()
        results.append([out.detach(), *[leaf.grad for leaf in leaves]])
    assert all(torch.equal(first, second) for first, second in zip(*results))


@pytest.mark.parametrize("part", range(4))
def test_windows_exactly(part):
    """With q = 0 and one-hot values the output is the window itself; one-hot dO gives dv. 200 shapes in four parts."""
    seed = drawn_seed(part)
    rng = random.Random(seed)
    for index in range(50):
        neighborhood = random_grid_neighborhood(rng, largest=8)
        mask = neighborhood.mask().float().to(DEVICE)
        n_q, n_k = mask.shape
        query, key = torch.zeros(1, n_q, 1, n_k, device=DEVICE), torch.randn(1, n_k, 1, n_k, device=DEVICE)
        value = torch.eye(n_k, device=DEVICE).view(1, n_k, 1, n_k).requires_grad_()
        out = neighborhood_attn(query, key, value, neighborhood, backend="triton")
        weights = out.view(n_q, n_k)
        grad_out = torch.zeros(n_q, n_k, device=DEVICE)
        grad_out[torch.arange(n_q), torch.arange(n_q) % n_k] = 1
        (dv,) = torch.autograd.grad(out, value, grad_out.view(out.shape))
        assert_windows(weights, dv.view(n_k, n_k), mask, grad_out, f"{index} {neighborhood}")
