"""Attention over a dense rectangle of scores: fused CPU kernels and plain products agree with autograd."""

import pytest
import torch

from mvar_kernels.backends.dense import attend, attend_backward

from kernel_cases import assert_close


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
