"""Shared by the kernel tests: random neighborhoods, truth in float64, and comparisons that say where."""

from __future__ import annotations

import math
import random

import torch
import torch.nn.functional as F

from mvar_kernels import Neighborhood, Pyramid, neighborhood_attn, pyramid_markov_attn
from mvar_kernels.backends import AttentionCall, reference
from mvar_kernels.dispatch import BACKENDS, load

# Every backend that runs on a CPU without an interpreter.
CPU_BACKENDS = tuple(name for name in BACKENDS if name != "triton")

# Relative to the largest magnitude of a result. Both sides start from the same rounded inputs.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

PYRAMID_256 = Pyramid((1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 7, 8)
PYRAMID_DIGITS = Pyramid((1, 2, 3, 4, 6, 8), 3, 3)


def random_grid_neighborhood(rng: random.Random, largest: int = 20) -> Neighborhood:
    """Draw one grid over another (equal half of the time), and a window that may exceed the grid."""
    query_grid = rng.randint(1, largest), rng.randint(1, largest)
    key_grid = query_grid if rng.random() < 0.5 else (rng.randint(1, largest), rng.randint(1, largest))
    return Neighborhood.of_grids(
        query_grid, key_grid, (rng.randint(1, largest + 2), rng.randint(1, largest + 2))
    )


def random_neighborhood_of_rank(
    rng: random.Random, rank: int, most_tokens: int = 400
) -> tuple[dict[str, tuple], Neighborhood]:
    """Draw a grid of `rank` axes with windows, strides, dilations and causal axes mixed, or unequal grids.

    Returns:
        The arguments of `Neighborhood.of_grids`, and what it makes of them.
    """
    largest = {1: most_tokens, 2: 24, 3: 12}[rank]
    while True:
        grid = tuple(rng.randint(1, largest) for _ in range(rank))
        other = tuple(rng.randint(1, largest) for _ in range(rank)) if rng.random() < 0.25 else grid
        if max(math.prod(grid), math.prod(other)) <= most_tokens:
            break
    window = tuple(rng.choice([rng.randint(1, side + 2), rng.randint(1, min(side + 2, 9))]) for side in other)
    equal = grid == other
    arguments = {
        "query_grid": grid,
        "key_grid": other,
        "window": window,
        "stride": tuple(rng.choice([1, rng.randint(1, size)]) if equal else 1 for size in window),
        "dilation": tuple(
            rng.choice([1, 1, rng.randint(1, min(side, 4)), rng.randint(1, side)]) if equal else 1
            for side in grid
        ),
        "causal": tuple(equal and rng.random() < 0.3 for _ in range(rank)),
    }
    return arguments, Neighborhood.of_grids(*arguments.values())


def random_pyramid(rng: random.Random, largest: int = 14) -> Pyramid:
    sides = [
        rng.choice([rng.randint(1, largest), (rng.randint(1, largest), rng.randint(1, largest))])
        for _ in range(rng.randint(1, 6))
    ]
    kernels = [rng.choice([None, rng.randint(1, 9), (rng.randint(1, 9), rng.randint(1, 9))]) for _ in sides]
    return Pyramid(
        sides, kernels, rng.randint(0, len(sides)) // 2, rng.choice([0, rng.randrange(len(sides))])
    )


def random_neighborhood(rng: random.Random) -> Neighborhood:
    """Draw a grid, a pyramid, or VAR's mask over a pyramid."""
    kind = rng.random()
    if kind < 0.5:
        return random_grid_neighborhood(rng)
    pyramid = random_pyramid(rng)
    return pyramid.neighborhood() if kind < 0.8 else pyramid.causal_neighborhood()


def random_head(rng: random.Random) -> dict[str, object]:
    """Draw a head dimension, and cosine attention or not."""
    # A cosine in few dimensions is ill-conditioned: in one it is a sign, whose gradient is cancellation over
    # |q|.
    cosine = rng.random() < 0.5
    return {"dim": rng.randint(6, 20) if cosine else rng.randint(1, 20), "cosine": cosine}


def draw_inputs(
    neighborhood,
    batch=2,
    heads=2,
    dim=8,
    dtype=torch.float32,
    cosine=False,
    seed=0,
    packed=False,
    device="cpu",
    key_heads=None,
    width=None,
):
    """Return query, key, value, logit_scale (or None), grad_out, grad_lse.

    With `packed`, query, key and value are views into one tensor. Keys and values have `key_heads` heads,
    values are `width` wide; by default both are those of the queries.
    """
    own, width = key_heads or heads, width or dim
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    lengths = neighborhood.num_queries, neighborhood.num_keys
    if packed:
        assert lengths[0] == lengths[1]
        query, key, value = normal(batch, lengths[0], 3, heads, dim).to(dtype).to(device).unbind(2)
    else:
        sizes = (lengths[0], heads, dim), (lengths[1], own, dim), (lengths[1], own, width)
        query, key, value = (normal(batch, *size).to(dtype).to(device) for size in sizes)
    logit_scale = (normal(heads).abs() * 4 + 1).float().to(device) if cosine else None
    grad_out = normal(batch, lengths[0], heads, width).to(dtype).to(device)
    grad_lse = normal(batch, heads, lengths[0]).float().to(device)
    return query, key, value, logit_scale, grad_out, grad_lse


def in_float64(inputs, neighborhood, scale, use_lse=True):
    """Return out, lse and gradients (dq, dk, dv, dlogit_scale) of the oracle, by autograd in float64."""
    *operands, grad_out, grad_lse = (None if t is None else t.detach().cpu().double() for t in inputs)
    leaves = [None if t is None else t.requires_grad_() for t in operands]
    out, lse = reference.attend(AttentionCall(*leaves, neighborhood, scale))
    outputs, gradients = ([out, lse], [grad_out, grad_lse]) if use_lse else ([out], [grad_out])
    given = iter(torch.autograd.grad(outputs, [leaf for leaf in leaves if leaf is not None], gradients))
    return out.detach(), lse.detach(), tuple(None if leaf is None else next(given) for leaf in leaves)


def assert_as_in_float64(backend, inputs, neighborhood, scale=0.3, use_lse=True):
    """Run forward and backward of a backend, compare both with the oracle, and return out, lse, gradients."""
    *operands, grad_out, grad_lse = inputs
    call, module = AttentionCall(*operands, neighborhood, scale), load(backend)
    assert module.can_run(call) is None
    out, lse = module.forward(call)
    grads = module.backward(call, out, lse, grad_out, grad_lse if use_lse else None)
    expected_out, expected_lse, expected = in_float64(inputs, neighborhood, scale, use_lse)
    names = "out", "lse", "dq", "dk", "dv", "dlogit_scale"
    for name, actual, truth in zip(names, (out, lse, *grads), (expected_out, expected_lse, *expected)):
        if truth is not None:
            tolerance = TOLERANCE[operands[0].dtype] * max(1.0, truth.abs().max().item())
            assert_close(actual, truth, tolerance, f"{name} of {neighborhood}")
    return out, lse, grads


def largest_error(actual, expected):
    return (
        (actual.detach().cpu().double() - expected.detach().cpu().double()).abs().max().item()
        if expected.numel()
        else 0.0
    )


def plain_pytorch(inputs, neighborhood, scale):
    """Return output and gradients of what one would write with SDPA, in the type of the inputs."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs[:4]]
    query, key, value, factor = leaves
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    if factor is not None:
        q, k = (
            F.normalize(q, dim=-1, eps=1e-12) * factor[:, None, None].to(q.dtype),
            F.normalize(k, dim=-1, eps=1e-12),
        )
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=neighborhood.mask().to(q.device), scale=scale
    ).transpose(1, 2)
    used = [leaf for leaf in leaves if leaf is not None]
    return out.detach(), torch.autograd.grad(out, used, inputs[4])


def errors_beside_plain_pytorch(
    backend, neighborhood, dtype, factor=None, batch=2, heads=2, device="cpu", positive=False
):
    """Return (name, error, plain PyTorch's error, largest value) of output and gradients, against float64.

    Args:
        backend: the backend by name.
        neighborhood: who attends to whom.
        dtype: type of the inputs; the truth starts from the same rounded ones.
        factor: of cosine attention, or None.
        batch: batch size.
        heads: number of heads.
        device: where the backend runs.
        positive: make the gradient of the output positive, so that what keys get from many queries adds up.
    """
    inputs = list(
        draw_inputs(
            neighborhood,
            batch=batch,
            heads=heads,
            dim=32,
            dtype=dtype,
            cosine=factor is not None,
            device=device,
        )
    )
    if factor is not None:
        inputs[3] = torch.full_like(inputs[3], factor)
    if positive:
        inputs[4] = inputs[4].abs()
    scale = 1.0 if factor is not None else 32**-0.5
    true_out, _, true_grads = in_float64(inputs, neighborhood, scale, use_lse=False)
    plain_out, plain_grads = plain_pytorch(inputs, neighborhood, scale)
    query, key, value, logit_scale, grad_out, _ = inputs
    module = load(backend)
    call = AttentionCall(query, key, value, logit_scale, neighborhood, scale)
    out, lse = module.forward(call)
    grads = module.backward(call, out, lse, grad_out, None)
    results = [("out", out, plain_out, true_out)]
    results += [
        (name, *three)
        for name, *three in zip(("dq", "dk", "dv", "dlogit_scale"), grads, plain_grads, true_grads)
    ]
    return [
        (name, largest_error(ours, true), largest_error(plain, true), true.abs().max().item())
        for name, ours, plain, true in results
    ]


def assert_within_twice_plain_pytorch(backend, neighborhood, dtype, factor, device="cpu", rounding=0.0):
    """Allow twice plain PyTorch's error, and `rounding` of the largest value on top."""
    for name, error, plain, largest in errors_beside_plain_pytorch(
        backend, neighborhood, dtype, factor, device=device
    ):
        # A few units in the last place of the largest value, for results that plain PyTorch happens to hit
        # exactly. The gradient of logit_scale is one sum of random signs over all queries, whose rounding is
        # a matter of luck: there, of the sum's typical size.
        size = largest if name != "dlogit_scale" else 2 * (2 * neighborhood.num_queries) ** 0.5
        allowed = 2 * plain + (2 * torch.finfo(dtype).eps + rounding) * size
        assert error <= allowed, f"{name} of {neighborhood}: error {error:.2e} > {allowed:.2e}"


def assert_right_with_one_operand_alone(backend, which, device="cpu"):
    """Let only operand number `which` require a gradient, and compare that with float64."""
    neighborhood = PYRAMID_DIGITS.neighborhood()
    inputs = draw_inputs(neighborhood, cosine=True, device=device)
    operands = [tensor.detach().requires_grad_(index == which) for index, tensor in enumerate(inputs[:4])]
    out = pyramid_markov_attn(*operands[:3], PYRAMID_DIGITS, logit_scale=operands[3], backend=backend)
    out.backward(inputs[4])
    expected = in_float64(inputs, neighborhood, 1.0, use_lse=False)[2]
    assert_close(
        operands[which].grad, expected[which], 1e-4 * max(1.0, expected[which].abs().max().item()), "gradient"
    )
    assert all(operand.grad is None for index, operand in enumerate(operands) if index != which)


def assert_windows_in_slices(neighborhood, backend, device, what, dim=64):
    """Check all windows: with q = 0 and one-hot values the output shows them, and one-hot dO shows them in
    dv.

    Each batch element holds `dim` columns of the one-hot values.
    """
    n_q, n_k = neighborhood.num_queries, neighborhood.num_keys
    batch = -(-n_k // dim)

    def sliced(matrix):  # (n, n_k) -> (batch, n, 1, dim)
        return (
            F.pad(matrix, (0, batch * dim - n_k))
            .unflatten(1, (batch, dim))
            .transpose(0, 1)
            .unsqueeze(2)
            .to(device)
        )

    def whole(slices):
        return slices.squeeze(2).transpose(0, 1).flatten(1)[:, :n_k].detach().cpu()

    target = torch.zeros(n_q, n_k)
    target[torch.arange(n_q), torch.arange(n_q) % n_k] = 1
    query, key = (
        torch.zeros(batch, n_q, 1, dim, device=device),
        torch.randn(batch, n_k, 1, dim, device=device),
    )
    value = sliced(torch.eye(n_k)).contiguous().requires_grad_()
    out = neighborhood_attn(query, key, value, neighborhood, backend=backend)
    (dv,) = torch.autograd.grad(out, value, sliced(target))
    assert_windows(whole(out), whole(dv), neighborhood.mask(), target, what)


def assert_windows(out, dv, mask, grad_out, what):
    """Check what q = 0 with one-hot values must give.

    Args:
        out: (Lq, Lk), the windows as weights; exactly 0 outside.
        dv: (Lk, Lk), sums of weights; exactly 0 for keys that no query sees.
        mask: (Lq, Lk), the windows.
        grad_out: one-hot gradient of out.
        what: begins the message of a failure.
    """
    # Relative to each entry: a weight goes through exp2(-lse), a few roundings of about log2(keys) <= 8, and
    # dv adds as many positive terms as `grad_out` has ones in a column, in an order that backends choose.
    eps, terms = torch.finfo(torch.float32).eps, int(grad_out.sum(0).max())
    weights = mask.double() / mask.double().sum(1, keepdim=True)
    for name, actual, expected, tolerance in (
        ("weights", out, weights, 8 * eps),
        ("dv", dv, weights.T @ grad_out.double(), (terms + 8) * eps),
    ):
        seen = expected > 0
        assert torch.equal(actual.detach() != 0, seen), f"{what}: {name} of other keys than the window's"
        assert_close(
            actual.detach()[seen] / expected[seen],
            torch.ones_like(expected[seen]),
            tolerance,
            f"{what}: {name} over what it should be",
        )


def assert_close(actual, expected, tolerance, what):
    """Check that the largest error is at most `tolerance`; a failure names the place and both values."""
    assert tuple(actual.shape) == tuple(expected.shape), (
        f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    )
    if not expected.numel():
        return
    error = (actual.detach().cpu().double() - expected.detach().cpu().double()).abs()
    error = torch.where(error.isnan(), torch.inf, error)
    worst = error.argmax()
    index = tuple(int(i) for i in torch.unravel_index(worst, error.shape))
    got, wanted = actual.flatten()[worst].item(), expected.flatten()[worst].item()
    largest = error.max().item()
    assert largest <= tolerance, (
        f"{what}{list(index)}: {got:.6g}, expected {wanted:.6g}, error {largest:.3e} > {tolerance:.3e}"
    )
