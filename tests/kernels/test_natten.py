"""NATTEN, as installed from PyPI: its names, its arguments, and the same output wherever it has one.

Gradients, which NATTEN has none of on a CPU, are those of natten-mps, a port with a path in plain PyTorch.
"""

import importlib
import inspect
import logging
import random
import warnings

import pytest
import torch

from mvar_kernels import natten as ours
from mvar_kernels import spatial_markov_attn

from chosen_cases import EVERYTHING
from kernel_cases import CPU_BACKENDS, assert_close

FUNCTIONS = {1: "na1d", 2: "na2d", 3: "na3d"}


@pytest.fixture
def natten():
    """The package itself; its CPU path is FlexAttention, uncompiled, and has no backward."""
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7):
        pytest.skip(f"NATTEN has no backend on a CPU with torch {torch.__version__}, it needs 2.7")
    reason = "NATTEN is not installed: `make test` tries `pip install natten`, which builds against torch"
    pytest.importorskip("natten", reason=reason)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield importlib.import_module("natten")


def random_call(rng, rank):
    """Return grid and arguments that NATTEN accepts: stride, dilation and causal axes mixed."""
    largest = {1: 60, 2: 16, 3: 8}[rank]
    grid = tuple(rng.randint(2, largest) for _ in range(rank))
    dilation = tuple(rng.randint(1, side // 2) if rng.random() < 0.5 else 1 for side in grid)
    kernel = tuple(rng.randint(2, side // step) for side, step in zip(grid, dilation))
    return grid, {
        "kernel_size": kernel,
        "stride": tuple(rng.randint(1, size) if rng.random() < 0.5 else 1 for size in kernel),
        "dilation": dilation,
        "is_causal": tuple(rng.random() < 0.3 for _ in range(rank)),
    }


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_same_output_as_natten(natten, rank, seed):
    """100 calls with MVAR_EVERYTHING=1; windows of a whole one-dimensional axis cannot be causal there."""
    rng = random.Random(seed + rank)
    for index in range(34 if EVERYTHING else 8):
        grid, options = random_call(rng, rank)
        if rank == 1 and options["is_causal"][0] and options["kernel_size"] == grid:
            options["is_causal"] = (False,)
        own = rng.choice([1, 3])
        query = torch.randn(2, *grid, 3, 16)
        key, value = torch.randn(2, *grid, own, 16), torch.randn(2, *grid, own, 16)
        theirs = getattr(natten, FUNCTIONS[rank])(query, key, value, backend="flex-fna", **options)
        for backend in CPU_BACKENDS:
            out = spatial_markov_attn(query, key, value, **options, backend=backend)
            assert_close(out, theirs, 2e-6, f"{backend}, {index}: grid {grid}, {options}")
        shim = getattr(ours, FUNCTIONS[rank])(query, key, value, **options)
        assert_close(shim, theirs, 2e-6, f"{index}: grid {grid}, {options}")


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_gradients_of_natten_mps(rank, seed):
    """With shared heads and values of another width.

    Its stride drops queries, and its even windows end beyond the axis, so both have no part in this.
    """
    theirs = pytest.importorskip("natten_mps", reason="natten-mps is not installed: `make test` tries to")
    rng, name = random.Random(seed + rank), FUNCTIONS[rank]
    weigh, attend = (getattr(theirs, f"{name}_{part}") for part in ("qk", "av"))
    for index in range(34 if EVERYTHING else 6):
        grid, options = random_call(rng, rank)
        del options["stride"]
        options["kernel_size"] = tuple((size - 1) | 1 for size in options["kernel_size"])
        own, times, width = rng.randint(1, 2), rng.randint(1, 3), rng.randint(1, 24)
        sizes = (own * times, 8), (own, 8), (own, width)
        leaves = [torch.randn(2, *grid, *size, dtype=torch.float64, requires_grad=True) for size in sizes]
        repeated = (leaf.repeat_interleave(times, dim=-2) for leaf in leaves[1:])
        logits = weigh(leaves[0], next(repeated), **options, scale=8**-0.5)
        expected = attend(logits.softmax(-1), next(repeated), **options)
        grad = torch.randn_like(expected)
        of_theirs = torch.autograd.grad(expected, leaves, grad)
        for backend in CPU_BACKENDS:
            out = spatial_markov_attn(*leaves, **options, backend=backend)
            of_ours = torch.autograd.grad(out, leaves, grad)
            for found, truth in zip((out, *of_ours), (expected, *of_theirs)):
                assert_close(found, truth, 1e-12, f"{backend}, {index}: {sizes}, grid {grid}, {options}")


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_additional_keys(natten, rank, seed):
    rng = random.Random(seed + rank)
    for index in range(8):
        grid, options = random_call(rng, rank)
        query, key, value = (torch.randn(2, *grid, 2, 16) for _ in range(3))
        more = dict(zip(("additional_keys", "additional_values"), torch.randn(2, 2, 5, 2, 16)))
        theirs = getattr(natten, FUNCTIONS[rank])(
            query, key, value, **options, **more, backend="flex-fna", return_lse=True,
            attention_kwargs={"backend": "flex-fmha"},
        )  # fmt: skip
        found = getattr(ours, FUNCTIONS[rank])(query, key, value, **options, **more, return_lse=True)
        for name, mine, expected in zip(("out", "lse"), found, theirs):
            assert_close(mine, expected, 2e-5, f"{name}, {index}: grid {grid}, {options}")


def test_gradients_reach_additional_keys(seed):
    """Against one softmax over all keys, written out."""
    grid, (query, key, value) = (4, 5), (torch.randn(1, 4, 5, 2, 8, dtype=torch.float64) for _ in range(3))
    more = torch.randn(2, 1, 3, 2, 8, dtype=torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (query, key, value, *more.unbind())]
    options = {"kernel_size": 3, "dilation": (2, 1), "is_causal": (False, True)}
    grad = torch.randn(1, *grid, 2, 8, dtype=torch.float64)
    out = ours.na2d(*leaves[:3], additional_keys=leaves[3], additional_values=leaves[4], **options)
    window = ours.Neighborhood.of_grids(grid, grid, options["kernel_size"], 1, (2, 1), (False, True)).mask()
    mask = torch.cat([window, torch.ones(20, 3, dtype=torch.bool)], dim=1)
    q, k, v = leaves[0].flatten(1, 2), leaves[1].flatten(1, 2), leaves[2].flatten(1, 2)
    k, v = torch.cat([k, leaves[3]], 1), torch.cat([v, leaves[4]], 1)
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) * 8**-0.5
    weights = logits.masked_fill(~mask, -torch.inf).softmax(-1)
    expected = torch.einsum("bhqk,bkhd->bqhd", weights, v).unflatten(1, grid)
    assert_close(out, expected, 1e-12, "out")
    for one, other in zip(
        torch.autograd.grad(out, leaves, grad), torch.autograd.grad(expected, leaves, grad)
    ):
        assert_close(one, other, 1e-12, "gradient")


def test_where_natten_refuses_the_window_is_the_grid(natten):
    query, key, value = (torch.randn(1, 4, 4, 2, 16) for _ in range(3))
    for refused in (7, 1, (4, 5)):
        with pytest.raises(Exception, match=r"(?i)kernel|window|greater"):
            natten.na2d(query, key, value, refused, backend="flex-fna")
    whole = natten.na2d(query, key, value, 4, backend="flex-fna")
    assert_close(ours.na2d(query, key, value, 7), whole, 2e-6, "window larger than the grid")
    assert torch.equal(ours.na2d(query, key, value, 1), value)


def test_names_arguments_and_defaults_are_natten_s(natten):
    for name in ours.__all__:
        mine, theirs = (inspect.signature(getattr(each, name)).parameters for each in (ours, natten))
        assert {key: value.default for key, value in mine.items()} == {
            key: value.default for key, value in theirs.items()
        }, name
        assert list(mine) == list(theirs), name


@pytest.mark.parametrize("rank, grid", [(1, (30,)), (2, (9, 8)), (3, (4, 6, 5))])
def test_modules_load_natten_s_parameters(natten, rank, grid):
    name = f"NeighborhoodAttention{rank}D"
    arguments = dict(embed_dim=32, num_heads=2, kernel_size=3, stride=2, is_causal=True, proj_drop=0.5)
    theirs, mine = getattr(natten, name)(**arguments), getattr(ours, name)(**arguments)
    mine.load_state_dict(theirs.state_dict())
    features = torch.randn(1, *grid, 32)
    with torch.no_grad():
        assert_close(mine.eval()(features), theirs.eval()(features), 2e-5, "module")
    assert repr(mine) == repr(theirs)


def test_what_tunes_is_ignored_with_one_line(caplog):
    query, key, value = (torch.randn(1, 6, 6, 2, 8) for _ in range(3))
    ours._logged.clear()
    with caplog.at_level(logging.INFO, logger="mvar_kernels"):
        tuned = [
            ours.na2d(query, key, value, 3, backend="hopper-fna", q_tile_shape=(8, 8), torch_compile=True)
            for _ in range(2)
        ]
    lines = [record.message for record in caplog.records if "ignores" in record.message]
    assert len(lines) == 1 and "backend, q_tile_shape, torch_compile" in lines[0]
    assert torch.equal(tuned[0], ours.na2d(query, key, value, 3, stride=None, dilation=None, is_causal=None))


X = torch.zeros(1, 6, 6, 2, 8)
WRONG = {
    "query must have 6 dimensions for na3d": lambda: ours.na3d(X, X, X, 3),
    "query and key must have one grid here": lambda: ours.na2d(X, X[:, :4], X[:, :4], 3),
    "additional_keys and additional_values must": lambda: ours.na2d(X, X, X, 3, additional_keys=X[:, 0]),
    r"additional_keys must be \(B, L, heads, D\)": lambda: ours.na2d(
        X, X, X, 3, additional_keys=X[:, 0, :, :1], additional_values=X[:, 0]
    ),
    r"embed_dim \(9\) must be a multiple of num_heads": lambda: ours.NeighborhoodAttention2D(9, 2, 3),
    "x must have 3 dimensions, the last 8": lambda: ours.NeighborhoodAttention1D(8, 2, 3)(X),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_one_line(message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        WRONG[message]()
    assert "\n" not in str(caught.value)
