"""Rows of logits to draw codes from, and the draw in float64 with a sort: the reference of `sample_codes`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Closer than this to a uniform number, or to the edge of what the filters keep, float32 may decide.
CLEAR_DRAW, CLEAR_FILTER = 2e-6, 1e-6
NEARLY_ONE = 1 - 2**-24

INF, NAN = torch.inf, torch.nan
# Logits, uniform number, settings and the code. First, where a filter is nearly off, and where it is.
NEARLY_OFF = [
    ([1.0, 3.0, 2.0], 0.0, {"top_k": 2}, 1),  # all codes but one
    ([1.0, 3.0, 2.0], 0.0, {"top_k": 2, "top_p": 0.999}, 1),
    ([1.0, 2.0], 0.0, {"top_k": 1}, 1),
    ([1.0, 3.0, 2.0], 0.0, {"top_k": 3}, 0),
    ([1.0, 3.0, 2.0], 0.0, {"top_k": 4, "top_p": 1.0}, 0),
    ([0.0, 12.0, 1.0], 0.0, {"top_p": 0.9999}, 1),
    ([0.0, 12.0, 1.0], 0.0, {"top_p": 1.0}, 0),
    ([1.0, 12.0, 2.0], 0.0, {"top_k": 2, "top_p": 0.9999}, 1),
]
EDGES = [
    *NEARLY_OFF,
    ([2.0, 2.0, 2.0, 2.0], 0.0, {"top_p": 0.5}, 0),
    ([2.0, 2.0, 2.0, 2.0], NEARLY_ONE, {"top_p": 0.5}, 1),  # two of four equal ones, the first two
    ([1.0, 2.0, 2.0, 2.0], NEARLY_ONE, {"top_k": 2, "top_p": 0.5}, 2),  # all three are kept by top_k
    ([1.0, 2.0, 2.0, 2.0], NEARLY_ONE, {"top_k": 2}, 3),
    ([1.0, 3.0, 2.0], NEARLY_ONE, {"top_k": 1}, 1),
    ([1.0, 3.0, 2.0], NEARLY_ONE, {"top_p": 1e-50}, 1),
    ([3.0, 3.0, 2.0], NEARLY_ONE, {"top_p": 1e-50}, 0),
    ([-0.0, 0.0, -1.0], NEARLY_ONE, {"top_k": 1}, 1),
    ([0.0, -0.0, -1.0], NEARLY_ONE, {"top_k": 1}, 1),
    ([-INF, 0.0, -INF], 0.0, {}, 1),
    ([-INF, 0.0, -INF], NEARLY_ONE, {}, 1),
    ([-INF, 0.0, -INF], NEARLY_ONE, {"top_k": 2, "top_p": 0.5}, 1),
    ([-200.0, 0.0, -200.0], 0.0, {}, 1),  # what underflows is impossible
    ([-INF, -INF, -INF], 0.5, {"top_k": 2, "top_p": 0.5}, 0),
    ([NAN, NAN, NAN], 0.5, {}, 0),
    ([NAN, 1.0, NAN], 0.0, {"top_k": 1}, 1),
    ([NAN, 1.0, NAN], NEARLY_ONE, {"top_k": 1}, 1),
    ([1.0, INF, 3.0, INF], 0.25, {"top_p": 0.9}, 1),
    ([1.0, INF, 3.0, INF], 0.75, {"top_p": 0.9}, 3),
    ([1.0, 1.0], -1.0, {}, 0),
    ([1.0, 1.0, -INF], 1.0, {}, 1),
    ([1.0, 1.0, -INF], NAN, {}, 1),
    ([5.0], 0.3, {"top_k": 1, "top_p": 0.5}, 0),
]


class Reference(NamedTuple):
    """What float64 draws.

    Attributes:
        codes: (N, m) int64.
        is_clear: (N, m) bool, false where rounding may change the code.
        probabilities: (N, V) float64, after the filters.
    """

    codes: Tensor
    is_clear: Tensor
    probabilities: Tensor


def reference(
    logits: Tensor,
    uniform: Tensor,
    unconditional: Tensor | None = None,
    guidance: float = 0.0,
    top_k: int = 0,
    top_p: float = 0.0,
) -> Reference:
    """Draw (N, m) codes from logits (N, V) by the definition, row by row, with a stable sort."""
    x = logits.double()
    if guidance:
        x = (1 + guidance) * x - guidance * unconditional.double()
    x = x.nan_to_num(nan=-torch.inf, posinf=torch.finfo(torch.float32).max, neginf=-torch.inf)
    rows = [_row(x[i], uniform[i].double(), top_k, top_p) for i in range(len(x))]
    return Reference(*(torch.stack(parts) for parts in zip(*rows)))


def _row(x: Tensor, uniform: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor, Tensor]:
    if x.max() == -torch.inf:
        return (
            torch.zeros(len(uniform), dtype=torch.int64),
            torch.ones(len(uniform)).bool(),
            torch.zeros_like(x),
        )
    # Stable, so equal logits stay in the order of their indices.
    values, order = x.sort(descending=True, stable=True)
    count, is_clear = len(x), True
    if 0 < top_k < count:
        least = values[top_k - 1]
        count = int((values >= least).sum())
        if count < len(x) and values[count] > -torch.inf:
            is_clear = bool(least - values[count] > CLEAR_FILTER * max(1.0, abs(float(least))))
    counts = [count]
    if 0 < top_p < 1:
        total = (values[:count] - values[0]).softmax(0).cumsum(0)
        counts = [
            min(count, int((total < top_p + by).sum()) + 1) for by in (0.0, -CLEAR_FILTER, CLEAR_FILTER)
        ]
    kept = [_inverted(x, order[:count], uniform) for count in dict.fromkeys(counts)]
    codes, far, probabilities = kept[0]
    # Where the set that top_p keeps is in doubt, the code is clear if either set gives it.
    for other, other_far, _ in kept[1:]:
        far = far & other_far & (other == codes)
    return codes, far & is_clear, probabilities


def _inverted(x: Tensor, kept: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw from the softmax over the codes `kept`; also tell which draws are far from their neighbours."""
    logits = torch.full_like(x, -torch.inf)
    logits[kept] = x[kept] - x[kept].max()
    # What underflows in float32 cannot be drawn.
    logits[logits < -87] = -torch.inf
    probabilities = logits.softmax(0)
    cumulative = probabilities.cumsum(0)
    possible = probabilities.nonzero()[:, 0]
    codes = torch.searchsorted(cumulative, uniform * cumulative[-1], right=True).clamp_max(possible[-1])
    # The last boundary is the end of the sum: nothing lies beyond it.
    inner = cumulative[possible[:-1]]
    distance = (inner[None] - uniform[:, None]).abs().amin(1) if len(inner) else torch.ones(len(uniform))
    # At 0, the first possible code is right however little it weighs.
    return codes, (distance > CLEAR_DRAW) | (uniform == 0), probabilities


class Case(NamedTuple):
    """Arguments of one call, for rows (N, V)."""

    logits: Tensor
    uniform: Tensor
    unconditional: Tensor | None
    guidance: float
    top_k: int
    top_p: float


def draw_case(seed: int, rows: int, vocabulary: int, dtype: torch.dtype = torch.float32) -> Case:
    """Draw logits with ties, equal rows, -inf and single survivors, and settings with their extremes.

    `seed` alone decides, so each case of a list can be repeated.
    """
    generator = torch.Generator().manual_seed(seed)

    def choice(values):
        return values[int(torch.randint(len(values), (), generator=generator))]

    def randn():
        return torch.randn(rows, vocabulary, generator=generator)

    logits = randn() * choice([0.5, 2.0, 4.0])
    kind = torch.arange(rows) % 8
    # Ties in steps of a half, equal rows, some codes impossible, one possible, and zeros of both signs.
    logits = torch.where(kind[:, None] == 1, (logits * 2).round() / 2, logits)
    logits = torch.where(kind[:, None] == 2, logits[:, :1], logits)
    logits = logits.masked_fill((kind[:, None] == 3) & (randn() > 0), -torch.inf)
    survivor = torch.arange(vocabulary) == torch.randint(vocabulary, (rows, 1), generator=generator)
    logits = logits.masked_fill((kind[:, None] == 4) & ~survivor, -torch.inf)
    logits = torch.where(kind[:, None] == 5, torch.where(randn() > 0, 0.0, -0.0), logits)
    uniform = torch.rand(rows, 1, generator=generator)
    place = torch.randint(200, (rows, 1), generator=generator)
    uniform = torch.where(place == 0, 0.0, torch.where(place == 1, NEARLY_ONE, uniform))
    guidance = choice([0.0, 0.0, 0.7, 1.5, 3.0])
    unconditional = None
    if guidance:
        # Equal where logits are, so that ties stay ties.
        unconditional = torch.where((kind[:, None] == 0) | (kind[:, None] > 5), randn(), logits * 0.5)
        unconditional = unconditional.nan_to_num(neginf=0.0).to(dtype)
    top_k = choice([0, 1, 2, vocabulary // 4, vocabulary // 2, vocabulary - 1, vocabulary, vocabulary + 5])
    # No multiples of 1 / V: float64 and float32 would round the edge of equal logits to different sides.
    top_p = choice([0.0, 1e-45, 1e-6, 0.3141, 0.6182, 0.9607, 1 - 1e-7, 1.0])
    return Case(logits.to(dtype), uniform, unconditional, guidance, top_k, top_p)


def disagreements(draw, cases) -> tuple[int, int]:
    """Assert that draw(case) is right wherever float64 is clear; return the number of others, and of all."""
    unclear = total = 0
    for case in cases:
        expected = reference(*case)
        codes = draw(case)
        wrong = (codes != expected.codes) & expected.is_clear
        row = int(wrong.any(1).nonzero()[:1].sum())
        assert not wrong.any(), (
            f"row {row} of {int(wrong.any(1).sum())}: got {codes[row].tolist()}, "
            f"expected {expected.codes[row].tolist()}, uniform {case.uniform[row].tolist()}, "
            f"guidance {case.guidance}, top_k {case.top_k}, top_p {case.top_p}, V {case.logits.shape[1]}"
        )
        unclear += int((~expected.is_clear).sum())
        total += expected.is_clear.numel()
    return unclear, total
