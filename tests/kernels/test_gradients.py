"""Gradients: the oracle against finite differences and a loop, backends against plain PyTorch's error."""

import random

import pytest
import torch

from mvar_kernels import Pyramid, ops, pyramid_markov_attn, spatial_markov_attn
from mvar_kernels.backends import AttentionCall, reference
from mvar_kernels.pyramid import Neighborhood

from kernel_cases import (
    CPU_BACKENDS,
    PYRAMID_DIGITS,
    assert_close,
    assert_right_with_one_operand_alone,
    assert_within_twice_plain_pytorch,
    draw_inputs,
    errors_beside_plain_pytorch,
    random_grid_neighborhood,
)


def loop_attention(query, key, value, logit_scale, neighborhood, scale):
    """(n_q, D), (n_k, D) twice: one query at a time, over its keys in a list."""
    mask = neighborhood.mask()
    outs, lses = [], []
    for i in range(neighborhood.num_queries):
        keys = mask[i].nonzero().flatten().tolist()
        logits = []
        for j in keys:
            product = (query[i] * key[j]).sum()
            if logit_scale is not None:
                product = logit_scale * product / (query[i].norm() * key[j].norm())
            logits.append(product * scale)
        weights = torch.stack([logit.exp() for logit in logits])
        outs.append(sum(weight * value[j] for weight, j in zip(weights, keys)) / weights.sum())
        lses.append(weights.sum().log())
    return torch.stack(outs), torch.stack(lses)


@pytest.mark.parametrize("cosine", [False, True])
def test_oracle_equals_a_loop(seed, cosine):
    rng = random.Random(seed)
    for _ in range(5):
        neighborhood = random_grid_neighborhood(rng, largest=4)
        query, key, value, logit_scale, *_ = draw_inputs(neighborhood, 1, 1, 6, torch.float64, cosine)
        out, lse = reference.attend(AttentionCall(query, key, value, logit_scale, neighborhood, 0.7))
        factor = None if logit_scale is None else logit_scale[0].double()
        expected = loop_attention(query[0, :, 0], key[0, :, 0], value[0, :, 0], factor, neighborhood, 0.7)
        assert_close(out[0, :, 0], expected[0], 1e-12, "out")
        assert_close(lse[0, 0], expected[1], 1e-12, "lse")


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("cosine", [False, True])
def test_gradcheck(backend, cosine):
    """Finite differences in float64, of the output and of lse."""
    neighborhood = Neighborhood.of_grids((3, 4), (4, 3), (2, 3))
    query, key, value, logit_scale, *_ = draw_inputs(neighborhood, 1, 2, 5, torch.float64, cosine)
    leaves = [t.double().requires_grad_() for t in (query, key, value, logit_scale) if t is not None]

    def run(query, key, value, factor=None):
        return ops.attention(query, key, value, factor, neighborhood.encode(), 0.6, backend)

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factor", [None, 10.0, 100.0])
def test_error_is_within_twice_that_of_plain_pytorch(backend, dtype, factor):
    """Factor 100 is cosine attention at its clamp, with logits up to 100."""
    assert_within_twice_plain_pytorch(backend, Pyramid((2, 5, 12), 5, 1).neighborhood(), dtype, factor)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_keys_that_many_tiles_see_are_summed_in_float32(backend, dtype):
    """25 tiles see a key with windows of 31, and all scales in VAR's mask; plain PyTorch adds in one go."""
    for neighborhood in (
        Neighborhood.of_grids((34, 34), (34, 34), (31, 31)),
        Pyramid(range(1, 11)).causal_neighborhood(),
    ):
        for name, error, plain, _ in errors_beside_plain_pytorch(
            backend, neighborhood, dtype, batch=1, heads=1, positive=True
        ):
            assert name in ("out", "dq") or error <= 1.2 * plain, (name, neighborhood)


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("backend", ["auto", *CPU_BACKENDS])
def test_each_operand_alone(backend, which):
    assert_right_with_one_operand_alone(backend, which)


def test_what_autograd_keeps():
    """q, k, v, out, lse and logit_scale: nothing of the size of the scores, no normalised copies."""
    inputs = draw_inputs(PYRAMID_DIGITS.neighborhood(), cosine=True)
    leaves = [tensor.detach().requires_grad_() for tensor in inputs[:4]]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
    ):
        out, lse = pyramid_markov_attn(*leaves[:3], PYRAMID_DIGITS, logit_scale=leaves[3], return_lse=True)
    known = {tensor.untyped_storage().data_ptr() for tensor in (*leaves, out, lse)}
    assert len(kept) == 6 and {tensor.untyped_storage().data_ptr() for tensor in kept} == known


def test_lse_alone_has_gradients():
    query, key, value = (
        torch.randn(1, 5, 5, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)
    )
    _, lse = spatial_markov_attn(query, key, value, 3, return_lse=True)
    lse.sum().backward()
    assert query.grad.any() and key.grad.any() and not value.grad.any()
