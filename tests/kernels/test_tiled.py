"""The tiled backend: its layout and the scratch memory that it keeps between calls."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mvar_kernels import Neighborhood, Pyramid, neighborhood_attn, spatial_markov_attn
from mvar_kernels.backends import AttentionCall, tiled
from mvar_kernels.backends.tiled import attend, tasks, workspace
from mvar_kernels.backends.tiled.layout import computed_scores, layout_of

from kernel_cases import assert_close, draw_inputs, in_float64, random_head, random_neighborhood


@pytest.fixture
def workers(monkeypatch):
    """Return a function that lets so many cores share even the smallest call, in tasks of one tile."""
    before = torch.get_num_threads()
    monkeypatch.setattr(tasks, "_LEAST_PRODUCTS", 1)
    monkeypatch.setattr(tasks, "_ELEMENTS", 1 << 9)
    monkeypatch.setattr(tiled, "_FORWARD_ELEMENTS", 1)
    monkeypatch.setattr(tiled, "_BACKWARD_ELEMENTS", 1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


def results(inputs, neighborhood, use_lse=True):
    """Return out, lse and all gradients of the tiled backend."""
    query, key, value, logit_scale, grad_out, grad_lse = inputs
    call = AttentionCall(query, key, value, logit_scale, neighborhood, 0.4)
    out, lse = tiled.forward(call)
    grad_lse = grad_lse if use_lse else None
    grads = tiled.backward(call, out, lse, grad_out, grad_lse)
    return [out, lse, *(grad for grad in grads if grad is not None)]


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("previous", [0, 1, 2])
def test_the_same_bits_on_any_number_of_cores(workers, cosine, previous):
    """Every key gets its summands in one order, whoever computes them and whenever."""
    neighborhood = Pyramid((3, (13, 10), (26, 35)), (7, 5), 0, previous).neighborhood()
    inputs = draw_inputs(neighborhood, dim=64, cosine=cosine)
    expected = None
    for threads in (1, 2, 3, 4, 2):
        workers(threads)
        actual = results(inputs, neighborhood, use_lse=False)
        expected = expected or actual
        for name, one, other in zip(("out", "lse", "dq", "dk", "dv", "dfactor"), actual, expected):
            assert torch.equal(one, other), (name, threads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cosine", [False, True])
def test_halves_are_computed_in_float32_on_a_cpu(dtype, cosine, seed):
    """Only the results are rounded; products of halves are slow on a CPU."""
    torch.manual_seed(seed)
    neighborhood = Pyramid((3, 9), 5).neighborhood()
    half = [None if each is None else each.to(dtype) for each in draw_inputs(neighborhood, cosine=cosine)]
    factor = half[3].float() if cosine else None
    out, _, *grads = results([*half[:3], factor, half[4], None], neighborhood)
    wide = [None if each is None else each.float() for each in half]
    expected, lse, *_ = results([*wide[:5], None], neighborhood)
    assert out.dtype == dtype and torch.equal(out, expected.to(dtype))
    # Backward reads the rounded output, as on a GPU.
    call = AttentionCall(*wide[:4], neighborhood, 0.4)
    for one, other in zip(grads, tiled.backward(call, out.float(), lse, wide[4], None)):
        if other is not None:
            assert torch.equal(one, other.to(one.dtype))


def test_the_same_bits_on_every_run(workers, seed):
    """Grids, pyramids and VAR's mask, with and without a gradient of lse."""
    rng = random.Random(seed)
    workers(3)
    for index in range(8):
        neighborhood, use_lse = random_neighborhood(rng), rng.random() < 0.3
        inputs = draw_inputs(neighborhood, heads=rng.randint(1, 3), seed=index, **random_head(rng))
        first, second = (results(inputs, neighborhood, use_lse) for _ in range(2))
        for name, one, other in zip(("out", "lse", "dq", "dk", "dv", "dfactor"), first, second):
            assert torch.equal(one, other), (name, index, neighborhood)


def test_shared_calls_against_float64(workers, seed):
    workers(3)
    rng = random.Random(seed)
    for index in range(4):
        neighborhood = random_neighborhood(rng)
        inputs = draw_inputs(neighborhood, seed=index, **random_head(rng))
        expected_out, expected_lse, gradients = in_float64(inputs, neighborhood, 0.4)
        truths = [expected_out, expected_lse, *(each for each in gradients if each is not None)]
        for actual, truth in zip(results(inputs, neighborhood), truths):
            assert_close(actual, truth, 3e-5 * max(1.0, truth.abs().max().item()), f"{index} {neighborhood}")


@pytest.mark.parametrize("cosine", [False, True])
def test_shared_calls_in_every_mode(workers, cosine):
    """Inference mode, no_grad, autocast and gradients, in this order, from this thread and from others."""
    workers(3)
    neighborhood = Pyramid((2, 5, (11, 19)), 3).neighborhood()
    query, key, value, logit_scale, grad_out, _ = draw_inputs(neighborhood, cosine=cosine)
    leaves = [tensor.requires_grad_() for tensor in (query, key, value)]

    def call(_):
        return neighborhood_attn(*leaves, neighborhood, logit_scale=logit_scale, backend="tiled")

    with torch.inference_mode():
        first = call(0)
    assert first.is_inference()
    with torch.no_grad():
        assert torch.equal(call(0), first)
    with torch.autocast("cpu", torch.bfloat16):
        assert call(0).dtype == torch.bfloat16
    gradients = torch.autograd.grad(call(0), leaves, grad_out)
    with ThreadPoolExecutor(4) as pool:
        for out in pool.map(call, range(8)):
            assert torch.equal(out, first) and not out.is_inference()
            again = torch.autograd.grad(out, leaves, grad_out)
            assert all(torch.equal(one, other) for one, other in zip(again, gradients))


def test_a_failure_in_a_worker_reaches_the_caller(workers, monkeypatch):
    workers(3)
    query = torch.randn(1, 30, 30, 2, 8, requires_grad=True)
    expected = spatial_markov_attn(query, query, query, 5, backend="tiled")

    def fails(*arguments):
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(attend, "scatter_tiles", fails)
        with pytest.raises(MemoryError, match="no room"):
            spatial_markov_attn(query, query, query, 5, backend="tiled")
        with pytest.raises(MemoryError, match="no room"):
            expected.sum().backward()
    assert torch.equal(spatial_markov_attn(query, query, query, 5, backend="tiled"), expected)


@pytest.mark.parametrize(
    "sides, window, previous",
    [
        ([(8, 8)], (3, 3), 0),
        ([(13, 21)], (5, 2), 0),
        ([(3, 30)], (7, 7), 0),
        ([(13, 21), (18, 20)], (5, 2), 1),
        ([4, 11, 10, 26], (5, 5), 3),
    ],
)
def test_every_query_lies_in_one_tile_and_sees_its_windows(sides, window, previous):
    """Slots that repeat a query are marked, and masks of strips show exactly the keys of the windows."""
    neighborhood = Pyramid(sides, window, 0, previous).neighborhood()
    blocks = neighborhood.by_queries()[-1]
    layout, expected = layout_of(blocks, torch.float32, torch.device("cpu")), neighborhood.mask()
    real = torch.ones_like(layout.queries, dtype=torch.bool) if layout.real is None else layout.real
    own = range(blocks[0].query_offset, neighborhood.num_queries)
    assert len(blocks) == previous + 1 and layout.queries[real].sort().values.tolist() == list(own)
    for run in layout.runs:
        for strip, shift in zip(layout.strips, run.key_shifts):
            keys = layout.keys(run.tiles)[:, strip.key_slots(shift)]
            queries = layout.queries[run.tiles, strip.slots]
            actual = torch.zeros(*queries.shape, neighborhood.num_keys, dtype=torch.int)
            seen = (strip.bias(run.tiles).squeeze(1) == 0).int()
            actual.scatter_add_(2, keys[:, None].expand(seen.shape), seen)
            assert torch.equal(actual, expected[queries].int())


def test_computed_scores_count_whole_tiles():
    """9 tiles of 8 x 8 queries; windows of 7 reach 14 x 14 keys."""
    assert computed_scores(Neighborhood.of_grids((24, 24), (24, 24), (7, 7)).blocks[0]) == 9 * 64 * 14 * 14


def test_memory_kept_between_calls_does_no_harm(monkeypatch):
    """Inference mode first, then gradients, other types and sizes, two threads at once."""

    def error(side, dtype):
        query, key, value = (
            torch.randn(2, side, side, 2, 8, dtype=dtype, requires_grad=True) for _ in range(3)
        )
        grad = torch.randn(2, side, side, 2, 8, dtype=dtype)
        actual, expected = (
            [out, *torch.autograd.grad(out, (query, key, value), grad)]
            for out in (
                spatial_markov_attn(query, key, value, 5, backend=backend)
                for backend in ("tiled", "reference")
            )
        )
        return max((a - b).abs().max().item() for a, b in zip(actual, expected))

    with torch.inference_mode():
        spatial_markov_attn(*(torch.randn(2, 12, 12, 2, 8) for _ in range(3)), 5, backend="tiled")
    with ThreadPoolExecutor(2) as pool:
        asked = [(side, dtype) for side in (9, 20, 13) for dtype in (torch.float32, torch.float64)] * 4
        assert all(actual < 1e-5 for actual in pool.map(lambda each: error(*each), asked))
    assert error(17, torch.float32) < 1e-5 and attend.scratch.buffers
    monkeypatch.setattr(workspace, "KEPT_BYTES", 0)
    assert error(17, torch.float32) < 1e-5 and not attend.scratch.buffers


@pytest.mark.parametrize("grids", [((20, 21), (20, 21)), ((17, 9), (23, 30))])
def test_gradients_are_added_to_seen_keys_alone(grids):
    """Adding zeros beside them would be a race: those keys may belong to another tile of the same turn."""
    block = Neighborhood.of_grids(*grids, (5, 5)).blocks[0]
    layout = layout_of((block,), torch.float32, torch.device("cpu"))
    for strip in layout.strips:
        for tile, seen in enumerate(layout.seen[0]):
            target = torch.zeros(1, block.num_keys, 1, 1)
            which = slice(tile, tile + 1)
            tiles = torch.ones(1, strip.masks.shape[-1], 1, 1)
            attend._add_to_keys(target, tiles, layout, which, strip)
            allowed = torch.zeros(block.key_grid)
            allowed[tuple(slice(keys.start, keys.stop) for keys in seen.keys)] = 1
            assert target.any() and not (target.view(block.key_grid) * (1 - allowed)).any()
