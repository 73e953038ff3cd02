"""Shared by plain PyTorch backends: dense rectangles of scores; cosine attention as a change of q and k."""

import pytest
import torch

from mvar_kernels import Neighborhood
from mvar_kernels.backends.dense import attend, attend_backward, normalized, normalized_backward

from kernel_cases import CPU_BACKENDS, assert_close, errors_beside_plain_pytorch


@pytest.mark.parametrize("with_lse", [False, True], ids=["fused", "plain"])
@pytest.mark.parametrize("hidden", [False, True])
def test_forward_and_backward(with_lse, hidden, seed):
    """A gradient of lse takes the plain products, as the fused kernels have none."""
    query = torch.randn(2, 3, 7, 8, requires_grad=True)
    key, value = (torch.randn(2, 3, 9, 8, requires_grad=True) for _ in range(2))
    bias = None
    if hidden:
        mask = torch.rand(7, 9) < 0.5
        mask[:, 0] = False
        bias = torch.zeros(7, 9).masked_fill_(mask, float("-inf"))
    scores = query @ key.transpose(-2, -1) * 0.3 + (0 if bias is None else bias)
    expected_out, expected_lse = scores.softmax(-1) @ value, scores.logsumexp(-1)
    grad_out, grad_lse = torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7) if with_lse else None
    loss = (expected_out * grad_out).sum() + (0 if grad_lse is None else (expected_lse * grad_lse).sum())
    expected = torch.autograd.grad(loss, (query, key, value))

    q, k, v = query.detach(), key.detach(), value.detach()
    out, lse = attend(q, k, v, bias, 0.3)
    assert_close(out, expected_out, 1e-5, "out")
    assert_close(lse, expected_lse, 1e-5, "lse")
    actual = attend_backward(grad_out, grad_lse, q, k, v, out, lse, bias, 0.3)
    for name, ours, theirs in zip(("dq", "dk", "dv"), actual, expected):
        assert_close(ours, theirs, 2e-5, name)


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
