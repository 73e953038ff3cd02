"""Forward and backward against the oracle in float64, through every door; other derivatives."""

import random

import pytest
import torch

from mvar_kernels import Neighborhood, Pyramid, ops, pyramid_markov_attn, spatial_markov_attn
from mvar_kernels.backends import AttentionCall
from mvar_kernels.dispatch import load

from chosen_cases import EVERYTHING, once, some
from kernel_cases import (
    PYRAMID_256,
    PYRAMID_DIGITS,
    assert_close,
    assert_right_with_one_operand_alone,
    draw_inputs,
    in_float64,
    random_head,
    random_neighborhood,
)
from triton_support import DEVICE, compare

SMALL = Pyramid((1, 2, 5), 3, 1)


@pytest.mark.parametrize("name, cosine", once(["256px", "digits"], [False, True]))
def test_pyramids(name, cosine):
    pyramid = {"256px": PYRAMID_256, "digits": PYRAMID_DIGITS}[name]
    compare(pyramid.neighborhood(), batch=1, cosine=cosine, dim=16)


def test_causal():
    compare(PYRAMID_DIGITS.causal_neighborhood(), batch=1)


@pytest.mark.parametrize("index", range(10 if EVERYTHING else 4))
def test_odd_shapes(index, seed):
    rng = random.Random(seed + index)
    neighborhood = random_neighborhood(rng)
    compare(
        neighborhood, batch=rng.randint(1, 2), heads=rng.randint(1, 3), seed=seed + index, **random_head(rng)
    )


@pytest.mark.parametrize("dim", some([1, 7, 16, 33, 64, 80, 128, 200, 256], 4))
def test_head_dimensions(dim):
    compare(
        Neighborhood.of_grids((9, 10), (9, 10), (3, 3)),
        batch=1,
        heads=1,
        dim=dim,
        cosine=dim % 2 == 0,
        scale=dim**-0.5,
    )


def test_a_pyramid_equals_its_scales_one_by_one():
    inputs = draw_inputs(PYRAMID_DIGITS.neighborhood(), dim=16, device=DEVICE)
    whole = pyramid_markov_attn(*inputs[:3], PYRAMID_DIGITS, backend="triton")
    for index, (side, window) in enumerate(zip(PYRAMID_DIGITS.sides, PYRAMID_DIGITS.windows)):
        own = PYRAMID_DIGITS.scale_slice(index)
        grids = [tensor[:, own].unflatten(1, side) for tensor in inputs[:3]]
        alone = spatial_markov_attn(*grids, window, backend="triton")
        assert_close(whole[:, own], alone.flatten(1, 2), 5e-6, f"scale {index}")


@pytest.mark.parametrize("which", some(range(4), 2))
def test_each_operand_alone(which):
    assert_right_with_one_operand_alone("triton", which, device=DEVICE)


@pytest.mark.parametrize("cosine", some([False, True], 1))
def test_opcheck(cosine):
    neighborhood = Pyramid((2, 5), 3).neighborhood()
    query, key, value, logit_scale, *_ = draw_inputs(neighborhood, batch=1, cosine=cosine, device=DEVICE)
    leaves = [None if t is None else t.detach().requires_grad_() for t in (query, key, value, logit_scale)]
    torch.library.opcheck(ops.attention, (*leaves, neighborhood.encode(), 0.3, "triton"))


def test_autograd_through_the_public_functions_is_deterministic():
    pyramid = Pyramid((2, (3, 5), 9), 3)
    results = []
    for _ in range(2):
        query, key, value, logit_scale, grad_out, _ = draw_inputs(
            pyramid.neighborhood(), batch=1, cosine=True, device=DEVICE
        )
        leaves = [tensor.requires_grad_() for tensor in (query, key, value, logit_scale)]
        out, lse = pyramid_markov_attn(
            *leaves[:3], pyramid, logit_scale=leaves[3], return_lse=True, backend="triton"
        )
        (out * grad_out).sum().backward(retain_graph=True)
        lse.sum().backward()
        results.append([out.detach(), *[leaf.grad for leaf in leaves]])
    assert all(torch.equal(first, second) for first, second in zip(*results))


@pytest.mark.skipif(DEVICE == "cpu", reason="70,000 programs take minutes in the interpreter")
def test_more_than_65535_heads():
    compare(Neighborhood.of_grids((2, 3), (2, 3), (1, 3)), batch=700, heads=100, dim=16)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_tensors_gpu_is_used_when_another_is_current():
    neighborhood = PYRAMID_DIGITS.neighborhood()
    with torch.cuda.device(0):
        here = draw_inputs(neighborhood, device="cuda:1")
        out, _ = load("triton").forward(AttentionCall(*here[:3], None, neighborhood, 0.3))
    assert out.device.index == 1
    assert_close(out, in_float64(here, neighborhood, 0.3)[0], 1e-5, "out")


def test_all_derivatives_are_those_of_dense_attention(seed):
    x, t = (torch.randn(2, SMALL.length, 2, 16, device=DEVICE) for _ in range(2))
    factor = torch.full((2,), 3.0, device=DEVICE)

    def energy(backend, x):
        out = pyramid_markov_attn(x, x, x, SMALL, logit_scale=factor, backend=backend)
        # The sine of a large float32 would enlarge its rounding.
        return (out.square().sum((1, 2, 3)) / 100).sin().sum()

    def derivatives(backend):
        def of(x):
            return energy(backend, x)

        gradient = torch.func.grad(of)
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(of(leaf), leaf, create_graph=True)
        return [
            torch.func.jvp(of, (x,), (t,))[1],
            torch.func.vmap(gradient)(x[:, None]),
            torch.func.jvp(gradient, (x,), (t,))[1],
            *torch.autograd.grad(first.square().sum(), leaf),
        ]

    for number, (ours, true) in enumerate(zip(derivatives("triton"), derivatives("reference"))):
        assert_close(ours, true, 1e-4 * float(true.abs().max()), f"derivative {number}")
