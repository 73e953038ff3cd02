"""Cosine attention as a change of q and k, and the gradient of that change."""

import pytest
import torch

from mvar_kernels import Neighborhood
from mvar_kernels.backends.cosine import normalized, normalized_backward

from kernel_cases import CPU_BACKENDS, errors_beside_plain_pytorch


def test_unit_vectors_times_the_factor_and_their_gradient():
    query, key = (torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    factor = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64, requires_grad=True)
    q, k = normalized(query, key, factor)
    assert torch.allclose(q.norm(dim=-1), factor.abs().expand(2, 5, 3), atol=1e-12)
    assert torch.allclose(k.norm(dim=-1), torch.ones(2, 5, 3, dtype=torch.float64))
    grad_q, grad_k = torch.randn_like(q), torch.randn_like(k)
    expected = torch.autograd.grad([q, k], [query, key, factor], [grad_q, grad_k])
    actual = normalized_backward(grad_q, grad_k, query.detach(), key.detach(), factor.detach())
    for name, ours, theirs in zip(("dq", "dk", "dfactor"), actual, expected):
        assert torch.allclose(ours, theirs, atol=1e-12), name


def test_without_a_factor_nothing_changes():
    query, key = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)
    assert normalized(query, key, None) == (query, key)
    assert normalized_backward(query, key, query, key, None) == (query, key, None)


@pytest.mark.parametrize("size", [0.0, 1e-14])
def test_vectors_below_the_clamp_have_finite_gradients(size):
    """x / eps is linear in x, so nothing is projected out."""
    tensor = torch.full((1, 1, 1, 4), size, dtype=torch.float64)
    grad = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64).view(1, 1, 1, 4)
    dq, _, _ = normalized_backward(grad, grad, tensor, tensor, torch.ones(1, dtype=torch.float64))
    assert torch.allclose(dq, grad * 1e12)


@pytest.mark.parametrize(
    ("dtype", "factor"), [(torch.float32, 1e8), (torch.float16, 6e4), (torch.float64, 1e8)]
)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_the_largest_factors(backend, dtype, factor):
    """What the docstring of `spatial_markov_attn` promises: as near to float64 as plain PyTorch."""
    neighborhood = Neighborhood.of_grids((12, 12), (12, 12), (5, 5))
    errors = errors_beside_plain_pytorch(backend, neighborhood, dtype, factor, 1, 1)
    for name, error, plain, size in errors:
        if name in ("out", "dv"):  # other gradients are as good as zero, and all rounding
            assert error <= 2 * plain + 4 * torch.finfo(dtype).eps * size, name
        elif name != "dlogit_scale":
            assert error <= 2 * plain + 1e-5, name
