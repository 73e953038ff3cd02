"""Shared by the kernel tests: random neighborhoods, float64 truth, and comparisons that print where and what."""

from __future__ import annotations

import random

import torch

from mvar_kernels import Pyramid
from mvar_kernels.backends import reference
from mvar_kernels.pyramid import Neighborhood

PYRAMID_256 = Pyramid((1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 7, 8)
PYRAMID_DIGITS = Pyramid((1, 2, 3, 4, 6, 8), 3, 3)


def random_grid_neighborhood(rng: random.Random, largest: int = 20) -> Neighborhood:
    """One grid over another (equal half of the time), any window from 1 x 1 to larger than the grid."""
    query_grid = rng.randint(1, largest), rng.randint(1, largest)
    key_grid = query_grid if rng.random() < 0.5 else (rng.randint(1, largest), rng.randint(1, largest))
    return Neighborhood.of_grids(query_grid, key_grid, (rng.randint(1, largest + 2), rng.randint(1, largest + 2)))


def random_pyramid(rng: random.Random, largest: int = 14) -> Pyramid:
    sides = [rng.choice([rng.randint(1, largest), (rng.randint(1, largest), rng.randint(1, largest))]) for _ in range(rng.randint(1, 6))]
    kernels = [rng.choice([None, rng.randint(1, 9), (rng.randint(1, 9), rng.randint(1, 9))]) for _ in sides]
    return Pyramid(sides, kernels)


def random_neighborhood(rng: random.Random) -> Neighborhood:
    """A grid, a pyramid, or VAR's mask over a pyramid."""
    kind = rng.random()
    if kind < 0.5:
        return random_grid_neighborhood(rng)
    pyramid = random_pyramid(rng)
    return pyramid.neighborhood() if kind < 0.8 else pyramid.causal_neighborhood()


def random_head(rng: random.Random) -> dict[str, object]:
    """Head dimension, and cosine attention or not. A cosine of very short vectors is ill-conditioned (of 1-d ones it is a sign, whose
    gradient is all cancellation divided by |q|), so those go without."""
    cosine = rng.random() < 0.5
    return {"dim": rng.randint(6, 20) if cosine else rng.randint(1, 20), "cosine": cosine}


def draw_inputs(neighborhood, batch=2, heads=2, dim=8, dtype=torch.float32, cosine=False, seed=0, packed=False, device="cpu"):
    """query, key, value, logit_scale (or None), grad_out, grad_lse; with `packed` q, k, v are views into one tensor."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    lengths = neighborhood.num_queries, neighborhood.num_keys
    if packed:
        assert lengths[0] == lengths[1]
        query, key, value = normal(batch, lengths[0], 3, heads, dim).to(dtype).to(device).unbind(2)
    else:
        query, key, value = (normal(batch, length, heads, dim).to(dtype).to(device) for length in (lengths[0], lengths[1], lengths[1]))
    logit_scale = (normal(heads).abs() * 4 + 1).float().to(device) if cosine else None
    grad_out = normal(batch, lengths[0], heads, dim).to(dtype).to(device)
    grad_lse = normal(batch, heads, lengths[0]).float().to(device)
    return query, key, value, logit_scale, grad_out, grad_lse


def in_float64(inputs, neighborhood, scale, use_lse=True):
    """Output, lse and gradients (dq, dk, dv, dlogit_scale): plain autograd of the dense oracle, in float64 on the CPU."""
    *operands, grad_out, grad_lse = (None if t is None else t.detach().cpu().double() for t in inputs)
    leaves = [None if t is None else t.requires_grad_() for t in operands]
    out, lse = reference.attend(*leaves, neighborhood, scale)
    outputs, gradients = ([out, lse], [grad_out, grad_lse]) if use_lse else ([out], [grad_out])
    found = iter(torch.autograd.grad(outputs, [leaf for leaf in leaves if leaf is not None], gradients))
    return out.detach(), lse.detach(), tuple(None if leaf is None else next(found) for leaf in leaves)


def largest_error(actual, expected):
    return (actual.detach().cpu().double() - expected.detach().cpu().double()).abs().max().item() if expected.numel() else 0.0


def assert_windows(out, dv, mask, grad_out, what):
    """What q = 0 with one-hot values must give: out (Lq, Lk) is the windows as weights, dv (Lk, Lk) their sums; what no query sees is exactly 0.

    float32 may err, relative to each entry: a weight goes through exp2(-lse), a few roundings of about log2(keys) <= 8; dv adds as many positive
    terms as `grad_out` has ones in a column, in whatever order a backend or a machine likes.
    """
    eps, terms = torch.finfo(torch.float32).eps, int(grad_out.sum(0).max())
    weights = mask.double() / mask.double().sum(1, keepdim=True)
    for name, actual, expected, tolerance in (("weights", out, weights, 8 * eps), ("dv", dv, weights.T @ grad_out.double(), (terms + 8) * eps)):
        seen = expected > 0
        assert torch.equal(actual.detach() != 0, seen), f"{what}: {name} of other keys than the window's"
        assert_close(actual.detach()[seen] / expected[seen], torch.ones_like(expected[seen]), tolerance, f"{what}: {name} over what it should be")


def assert_close(actual, expected, tolerance, what):
    """Largest error at most `tolerance`; a failure names the place and both values."""
    assert tuple(actual.shape) == tuple(expected.shape), f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if not expected.numel():
        return
    error = (actual.detach().cpu().double() - expected.detach().cpu().double()).abs()
    error = torch.where(error.isnan(), torch.inf, error)
    worst = error.argmax()
    index = tuple(int(i) for i in torch.unravel_index(worst, error.shape))
    assert error.max() <= tolerance, (
        f"{what}{list(index)}: {actual.flatten()[worst].item():.6g}, expected {expected.flatten()[worst].item():.6g}, "
        f"error {error.max().item():.3e} > {tolerance:.3e}"
    )
