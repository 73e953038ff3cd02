"""Neighborhoods of 1, 2 and 3 axes with dilation, stride and causal axes, by the words of the definition."""

import math
import random

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from mvar_kernels import Neighborhood, Pyramid, neighborhood_attn, spatial_markov_attn
from mvar_kernels.backends import AttentionCall
from mvar_kernels.dispatch import load
from mvar_kernels.neighborhood import axis_windows
from mvar_kernels.pyramid import WindowBlock

from chosen_cases import EVERYTHING
from kernel_cases import (
    CPU_BACKENDS,
    assert_as_in_float64,
    assert_close,
    assert_windows_in_slices,
    assert_within_twice_plain_pytorch,
    draw_inputs,
    random_neighborhood_of_rank,
)


def keys_seen(i, n_q, n_k, kernel, dilation=1, stride=1, causal=False):
    """Return the keys of query i along one axis, one sentence of the definition after the other."""
    if n_q != n_k:
        center = ((2 * i + 1) * n_k) // (2 * n_q)
        line, position, leader = list(range(n_k)), center, center
    else:
        line = [j for j in range(n_k) if j % dilation == i % dilation]
        position = line.index(i)
        mates = [p for p in range(len(line)) if p // stride == position // stride]
        leader = mates[-1] if causal else mates[min(stride // 2, len(mates) - 1)]
    size = min(kernel, len(line))
    if causal:
        return {line[p] for p in range(len(line)) if leader - size < p <= position}
    start = leader - size // 2
    while start < 0:
        start += 1
    while start + size > len(line):
        start -= 1
    return {line[p] for p in range(start, start + size)}


def brute_force(query_grid, key_grid, window, stride, dilation, causal):
    """Return the mask, one query and one key at a time."""
    rank = len(query_grid)
    mask = torch.zeros(math.prod(query_grid), math.prod(key_grid), dtype=torch.bool)
    for query in range(mask.shape[0]):
        rest, places = query, []
        for side in reversed(query_grid):
            rest, place = divmod(rest, side)
            places.insert(0, place)
        seen = [
            keys_seen(places[a], query_grid[a], key_grid[a], window[a], dilation[a], stride[a], causal[a])
            for a in range(rank)
        ]
        for key in range(mask.shape[1]):
            rest, visible = key, True
            for axis in reversed(range(rank)):
                rest, place = divmod(rest, key_grid[axis])
                visible = visible and place in seen[axis]
            mask[query, key] = visible
    return mask


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_masks_against_a_loop(rank, seed):
    rng = random.Random(seed + rank)
    for index in range(100):
        arguments, neighborhood = random_neighborhood_of_rank(rng, rank, most_tokens=80)
        expected = brute_force(**arguments)
        assert torch.equal(neighborhood.mask(), expected), f"{index}: {arguments}"
        assert neighborhood.attended_pairs() == int(expected.sum())
        assert Neighborhood.decode(neighborhood.encode()) == neighborhood


def test_windows_are_ranges_that_never_move_back(seed):
    """In the order of places, which is what tiles rely on."""
    rng = random.Random(seed)
    for _ in range(300):
        length = rng.randint(1, 40)
        kernel = rng.randint(1, 45)
        windows = axis_windows(
            length,
            length,
            kernel,
            rng.randint(1, length),
            rng.randint(1, min(kernel, length)),
            rng.random() < 0.5,
        )
        assert sorted(windows.order.tolist()) == list(range(length))
        assert (windows.starts < windows.stops).all()
        for ends in (windows.starts, windows.stops):
            assert (ends[1:] >= ends[:-1]).all()


def test_a_window_larger_than_an_axis_has_is_all_of_it():
    def mask(*arguments, **options):
        return Neighborhood.of_grids((7,), (7,), *arguments, **options).mask()

    same_group = torch.arange(7)[:, None] % 3 == torch.arange(7)[None] % 3
    for kernel in (3, 5, 9):
        assert torch.equal(mask(kernel, dilation=3), same_group)
        assert torch.equal(mask(kernel, dilation=3, is_causal=True), same_group.tril())
        assert torch.equal(mask(9, stride=kernel), torch.ones(7, 7, dtype=torch.bool))
        assert torch.equal(mask(9, stride=kernel, is_causal=True), torch.ones(7, 7, dtype=torch.bool).tril())
    assert torch.equal(mask(1, dilation=2), torch.eye(7, dtype=torch.bool))
    assert torch.equal(mask(5, dilation=7), torch.eye(7, dtype=torch.bool))


def test_pyramids_of_other_ranks():
    volume = Pyramid([1, (2, 3, 4), (4, 6, 8)], (3, 3, 5), 1, 1)
    assert volume.sides == ((1, 1, 1), (2, 3, 4), (4, 6, 8)) and volume.length == 1 + 24 + 192
    assert volume.windows == ((1, 1, 1), (2, 3, 4), (3, 3, 5))
    scales = [volume.mask()[volume.scale_slice(2), volume.scale_slice(s)] for s in range(3)]
    plain = dict(stride=(1,) * 3, dilation=(1,) * 3, causal=(False,) * 3)
    assert not scales[0].any()
    assert torch.equal(scales[1], brute_force((4, 6, 8), (2, 3, 4), (3, 3, 5), **plain))
    assert torch.equal(scales[2], brute_force((4, 6, 8), (4, 6, 8), (3, 3, 5), **plain))
    line = Pyramid([(5,), (9,)], 3)
    assert line.length == 14 and line.windows == ((3,), (3,)) and "sides=[5, 9]" in repr(line)
    assert torch.equal(Pyramid([(5,), (9,)]).causal_mask()[5:], torch.ones(9, 14, dtype=torch.bool))
    assert line.select(range(1, 2)) == Pyramid([(9,)], 3)


GRID = (4, 4)
WRONG = [
    (GRID, GRID, {"window": (1, 2, 3)}, r"kernel_size must be an int or a \(rows, columns\) pair"),
    ((4, 4, 4), (4, 4, 4), {"window": (1, 2)}, r"kernel_size must be an int or a \(frames, rows, columns\)"),
    (GRID, GRID, {"dilation": 5}, r"dilation must be at most the grid \(4, 4\), got \(5, 5\)"),
    (GRID, GRID, {"dilation": 0}, "dilation must be at least 1, got 0"),
    (GRID, GRID, {"stride": (1, 4)}, "stride must be at most kernel_size"),
    (GRID, GRID, {"is_causal": 1}, "is_causal must be a bool or a tuple of bools, got 1"),
    ((4,), (4,), {"is_causal": (True, False)}, r"is_causal must be a bool or a \(length,\) tuple"),
    (GRID, (4, 8), {"is_causal": True}, "is_causal needs equal grids of queries and keys"),
    (GRID, (4, 8), {"dilation": 2}, "dilation needs equal grids of queries and keys"),
    (GRID, (4, 8), {"stride": 2}, "stride needs equal grids of queries and keys"),
]


@pytest.mark.parametrize("query_grid, key_grid, arguments, message", WRONG)
def test_wrong_arguments_are_one_line(query_grid, key_grid, arguments, message):
    """Also of the public function, where `window` is called `kernel_size`."""
    arguments = {"window": 3, **arguments}
    with pytest.raises((TypeError, ValueError), match=f"^{message}") as caught:
        Neighborhood.of_grids(query_grid, key_grid, **arguments)
    assert "\n" not in str(caught.value)
    query, key = torch.zeros(1, *query_grid, 1, 8), torch.zeros(1, *key_grid, 1, 8)
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        spatial_markov_attn(query, key, key, arguments.pop("window"), **arguments)


WRONG_SHAPES = [
    ((1, 4, 8), (1, 4, 8), (1, 4, 8), r"query must be \(B, L, heads, D\), .* got shape \(1, 4, 8\)"),
    ((1, 4, 4, 2, 8), (1, 4, 2, 8), (1, 4, 2, 8), "key must have 5 dimensions"),
    ((1, 4, 4, 8), (1, 4, 3, 8), (1, 4, 3, 8), "the number of heads of query must be a multiple of key's"),
    ((1, 4, 2, 8), (1, 4, 4, 8), (1, 4, 4, 8), "the number of heads of query must be a multiple of key's"),
    ((1, 4, 2, 8), (1, 4, 2, 8), (1, 4, 1, 8), "key and value must have one shape but for the last size"),
    ((1, 4, 2, 8), (1, 4, 2, 8), (1, 4, 2, 257), "value's head dimension must be between 1 and 256"),
]


@pytest.mark.parametrize("query, key, value, message", WRONG_SHAPES)
def test_wrong_tensors_are_one_line(query, key, value, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        spatial_markov_attn(*map(torch.zeros, (query, key, value)), 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_windows_exactly(backend, rank, seed):
    """With q = 0 and one-hot values the output is the window; one-hot dO shows it in dv."""
    rng = random.Random(seed + rank)
    for index in range(300 if EVERYTHING else 60):
        arguments, neighborhood = random_neighborhood_of_rank(rng, rank, most_tokens=160)
        assert_windows_in_slices(neighborhood, backend, "cpu", f"{index}: {arguments}")


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_all_results_against_float64(backend, rank, seed):
    """Output, lse and gradients, with other widths of values and fewer heads of keys."""
    rng = random.Random(seed + rank)
    for _ in range(20):
        _, neighborhood = random_neighborhood_of_rank(rng, rank)
        dim, width, own, times = rng.randint(6, 20), rng.randint(1, 24), rng.randint(1, 3), rng.randint(1, 3)
        inputs = draw_inputs(
            neighborhood, heads=own * times, key_heads=own, dim=dim, width=width, cosine=rng.random() < 0.5
        )
        assert_as_in_float64(backend, inputs, neighborhood)


@pytest.mark.parametrize("options", [{}, {"dilation": 57, "is_causal": True}, {"stride": 3}])
def test_several_tiles_of_one_dimension(options):
    """There strips have fewer places along the last axis than tiles: was wrong where those lie in a line."""
    neighborhood = Neighborhood.of_grids((255,), (255,), 9, **options)
    assert_as_in_float64("tiled", draw_inputs(neighborhood), neighborhood)


@pytest.mark.parametrize("backend", ["tiled", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grid", [(90,), (9, 11), (5, 6, 7)])
def test_half_precision(backend, dtype, grid):
    for more in ({}, {"stride": 2, "dilation": 2}, {"is_causal": True}):
        neighborhood = Neighborhood.of_grids(grid, grid, 3, **more)
        assert_within_twice_plain_pytorch(backend, neighborhood, dtype, None)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_gradients_of_a_shared_head_have_the_same_bits_on_every_run(backend):
    neighborhood = Neighborhood.of_grids((8, 9, 10), (8, 9, 10), 3, 2, (1, 2, 1), (True, False, False))
    query, key, value, _, grad, _ = draw_inputs(neighborhood, heads=6, key_heads=2, dim=16, width=24)

    def gradients():
        leaves = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
        return torch.autograd.grad(neighborhood_attn(*leaves, neighborhood, backend=backend), leaves, grad)

    assert all(torch.equal(one, other) for one, other in zip(gradients(), gradients()))


class Largest(TorchDispatchMode):
    """Record how many elements the largest result of any operation has."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("kernel_size", [3, 32])
@pytest.mark.parametrize("backend", ["tiled", "sdpa"])
def test_shared_heads_are_not_repeated_in_memory(backend, kernel_size):
    neighborhood = Neighborhood.of_grids((2, 2), (32, 32), kernel_size)
    query, key, value, _, grad, _ = draw_inputs(neighborhood, heads=8, key_heads=2)
    call, module = AttentionCall(query, key, value, None, neighborhood, 1.0), load(backend)
    with Largest() as largest:
        out, lse = module.forward(call)
        module.backward(call, out, lse, grad, None)
    assert key.numel() <= largest.elements < 2 * key.numel()


def test_extra_keys_and_a_dilated_window_in_one_softmax(seed):
    """A dense block beside a dilated one, as NATTEN's additional keys are."""
    window = Neighborhood.of_grids((7, 9), (7, 9), 3, dilation=2).blocks[0]
    extra = WindowBlock(0, (7, 9), 63, (1, 5), (1, 5))
    neighborhood = Neighborhood((window, extra), 63, 68)
    for backend in CPU_BACKENDS:
        assert_as_in_float64(backend, draw_inputs(neighborhood, seed=seed), neighborhood)
        assert_windows_in_slices(neighborhood, backend, "cpu", backend)


def test_a_dilated_block_shares_its_keys_with_none():
    window = Neighborhood.of_grids((7, 9), (7, 9), 3, dilation=2).blocks[0]
    other = WindowBlock(63, (1, 2), 0, (1, 9), (1, 9))
    with pytest.raises(ValueError, match="neighborhood lets a dilated block share its keys"):
        Neighborhood((window, other), 65, 63).check()
    near = WindowBlock(0, (7, 9), 63, (2, 2), (1, 1))
    with pytest.raises(ValueError, match="neighborhood lets a dilated block share its queries"):
        Neighborhood((window, near), 63, 67).check()


@pytest.mark.parametrize("grid", [(40,), (6, 7), (3, 4, 5)])
def test_derivatives_of_any_order_and_compiled(grid):
    """Those that no kernel computes come from formulas, which know places and shared heads too."""
    arguments = dict(kernel_size=3, stride=2, dilation=2, is_causal=True)

    def attend(query, key, value, backend="tiled"):
        return spatial_markov_attn(query, key, value, **arguments, backend=backend)

    query = torch.randn(1, *grid, 4, 3, dtype=torch.float64, requires_grad=True)
    key = torch.randn(1, *grid, 2, 3, dtype=torch.float64, requires_grad=True)
    value = torch.randn(1, *grid, 2, 2, dtype=torch.float64, requires_grad=True)
    out = attend(query, key, value)
    directions = tuple(torch.randn_like(tensor) for tensor in (query, key, value))
    _, along = torch.func.jvp(attend, (query, key, value), directions)
    step = 1e-6
    ends = [
        attend(*(t + sign * step * d for t, d in zip((query, key, value), directions))) for sign in (1, -1)
    ]
    assert_close(along, (ends[0] - ends[1]) / (2 * step), 1e-7, "tangent")
    weights = torch.randn_like(out)
    (grad,) = torch.autograd.grad((attend(query, key, value) * weights).sum(), query, create_graph=True)
    second = torch.autograd.grad((grad * directions[0]).sum(), (query, key, value))
    (grad,) = torch.autograd.grad(
        (attend(query, key, value, "reference") * weights).sum(), query, create_graph=True
    )
    for one, other in zip(second, torch.autograd.grad((grad * directions[0]).sum(), (query, key, value))):
        assert_close(one, other, 1e-10, "second derivative")
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(query, key, value), attend(query, key, value))


def test_flops_count_the_width_of_values_and_attended_pairs():
    query, key, value = torch.zeros(1, 9, 4, 8), torch.zeros(1, 9, 2, 8), torch.zeros(1, 9, 2, 24)
    with FlopCounterMode(display=False) as counter:
        spatial_markov_attn(query, key, value, 3, is_causal=True)
    assert counter.get_total_flops() == 2 * (8 + 24) * 4 * (1 + 2 + 7 * 3)
