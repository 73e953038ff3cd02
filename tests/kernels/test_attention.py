"""The public attention functions: exact windows, views, isolation of scales, refusal of wrong input."""

import random

import pytest
import torch

from mvar_kernels import Neighborhood, Pyramid, neighborhood_attn, pyramid_markov_attn, spatial_markov_attn
from mvar_kernels.backends import AttentionCall
from mvar_kernels.dispatch import load

from kernel_cases import (
    CPU_BACKENDS,
    PYRAMID_256,
    PYRAMID_DIGITS,
    assert_close,
    assert_windows,
    draw_inputs,
    in_float64,
    random_grid_neighborhood,
    random_head,
    random_neighborhood,
)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_windows_exactly(backend, seed):
    """With q = 0 and one-hot values the output *is* the window, so one wrong key shows; likewise in dv."""
    rng = random.Random(seed)
    for index in range(200):
        neighborhood = random_grid_neighborhood(rng, largest=11)
        block, mask = neighborhood.blocks[0], neighborhood.mask()
        n_q, n_k = mask.shape
        key = torch.randn(1, *block.key_grid, 1, n_k)
        value = torch.eye(n_k).view(1, *block.key_grid, 1, n_k).requires_grad_()
        query = torch.zeros(1, *block.query_grid, 1, n_k)
        # The public head dimension ends at 256; the general entry takes what the oracle needs.
        out = load_windows(query, key, value, neighborhood, backend)
        target = torch.zeros(n_q, n_k)
        target[torch.arange(n_q), torch.arange(n_q) % n_k] = 1
        (dv,) = torch.autograd.grad(out, value, target)
        assert_windows(out, dv.view(n_k, n_k), mask, target, f"{index} {neighborhood}")


@pytest.mark.parametrize("backend", ["auto", *CPU_BACKENDS])
def test_inference_mode_first_then_gradients(backend):
    """Validate, then train: what is kept from the first call must serve the second."""
    pyramid = Pyramid((3, 11), 3)  # shapes and windows of no other test, so that nothing is kept yet
    for side, window in ((11, (5, 3)), (26, (3, 9))):
        query, key, value = (torch.randn(1, side, side, 2, 4, requires_grad=True) for _ in range(3))
        with torch.inference_mode():
            first = spatial_markov_attn(query, key, value, window, backend=backend)
        out = spatial_markov_attn(query, key, value, window, backend=backend)
        assert torch.equal(first, out)
        out.sum().backward()
    query, key, value = (torch.randn(1, pyramid.length, 2, 4, requires_grad=True) for _ in range(3))
    with torch.inference_mode():
        pyramid_markov_attn(query, key, value, pyramid, backend=backend)
    pyramid_markov_attn(query, key, value, pyramid, backend=backend).sum().backward()


def load_windows(query, key, value, neighborhood, backend):
    from mvar_kernels import ops

    flat = [tensor.flatten(1, 2) for tensor in (query, key, value)]
    out, _ = ops.attention(*flat, None, neighborhood.encode(), 1.0, backend)
    return out.reshape(neighborhood.num_queries, neighborhood.num_keys)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("cosine", [False, True])
def test_pyramids_against_float64(backend, cosine):
    for pyramid in (PYRAMID_256, PYRAMID_DIGITS):
        neighborhood = pyramid.neighborhood()
        inputs = draw_inputs(neighborhood, batch=2, heads=3, dim=16, cosine=cosine, packed=True)
        query, key, value, logit_scale, grad_out, grad_lse = inputs
        leaves = [
            None if t is None else t.detach().requires_grad_() for t in (query, key, value, logit_scale)
        ]
        out, lse = pyramid_markov_attn(
            *leaves[:3], pyramid, scale=0.3, logit_scale=leaves[3], return_lse=True, backend=backend
        )
        torch.autograd.backward([out, lse], [grad_out, grad_lse.transpose(1, 2)])
        expected_out, expected_lse, expected = in_float64(inputs, neighborhood, 0.3)
        assert_close(out, expected_out, 1e-5, "out")
        assert_close(lse.transpose(1, 2), expected_lse, 1e-5, "lse")
        for leaf, gradient in zip(leaves, expected):
            if leaf is not None:
                assert_close(leaf.grad, gradient, 2e-5 * max(1.0, gradient.abs().max().item()), "gradient")


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_random_neighborhoods_against_float64(backend, seed):
    """Grids, pyramids and VAR's mask; odd shapes; with and without a gradient of lse."""
    rng = random.Random(seed)
    for index in range(12):
        neighborhood = random_neighborhood(rng)
        inputs = draw_inputs(neighborhood, heads=rng.randint(1, 3), seed=index, **random_head(rng))
        query, key, value, logit_scale, grad_out, grad_lse = inputs
        module, use_lse = load(backend), rng.random() < 0.5
        call = AttentionCall(query, key, value, logit_scale, neighborhood, 0.4)
        out, lse = module.forward(call)
        grads = module.backward(call, out, lse, grad_out, grad_lse if use_lse else None)
        expected_out, expected_lse, expected = in_float64(inputs, neighborhood, 0.4, use_lse)
        for name, actual, truth in (
            ("out", out, expected_out),
            ("lse", lse, expected_lse),
            *zip(("dq", "dk", "dv", "df"), grads, expected),
        ):
            if truth is not None:
                assert_close(
                    actual, truth, 3e-5 * max(1.0, truth.abs().max().item()), f"{name} {index} {neighborhood}"
                )


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_pyramid_equals_calls_per_scale(backend):
    pyramid = Pyramid((1, 2, (3, 7), 10, 12), 5, 2)
    query, key, value, logit_scale, *_ = draw_inputs(pyramid.neighborhood(), cosine=True)
    whole = pyramid_markov_attn(query, key, value, pyramid, logit_scale=logit_scale, backend=backend)
    for scale, (side, window) in enumerate(zip(pyramid.sides, pyramid.windows)):
        where = pyramid.scale_slice(scale)
        grids = [tensor[:, where].unflatten(1, side) for tensor in (query, key, value)]
        alone = spatial_markov_attn(*grids, window, logit_scale=logit_scale, backend=backend)
        assert_close(whole[:, where], alone.flatten(1, 2), 2e-6, f"scale {scale}")


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_changing_one_scale_leaves_the_others_bit_identical(backend):
    query, key, value, *_ = draw_inputs(PYRAMID_DIGITS.neighborhood())
    before = pyramid_markov_attn(query, key, value, PYRAMID_DIGITS, backend=backend)
    for scale in range(PYRAMID_DIGITS.num_scales):
        changed = [tensor.clone() for tensor in (query, key, value)]
        for tensor in changed:
            tensor[:, PYRAMID_DIGITS.scale_slice(scale)] *= -9
        same = (pyramid_markov_attn(*changed, PYRAMID_DIGITS, backend=backend) == before).all(dim=(0, 2, 3))
        inside = torch.zeros(PYRAMID_DIGITS.length, dtype=torch.bool)
        inside[PYRAMID_DIGITS.scale_slice(scale)] = True
        assert same[~inside].all() and not same[inside].any()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_deterministic(backend):
    neighborhood = PYRAMID_256.neighborhood()
    results = []
    for _ in range(2):
        query, key, value, logit_scale, grad_out, _ = draw_inputs(neighborhood, cosine=True)
        leaves = [tensor.requires_grad_() for tensor in (query, key, value, logit_scale)]
        out = neighborhood_attn(*leaves[:3], neighborhood, logit_scale=leaves[3], backend=backend)
        out.backward(grad_out)
        results.append([out.detach(), *[leaf.grad for leaf in leaves]])
    assert all(torch.equal(first, second) for first, second in zip(*results))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_unseen_keys_get_exact_zeros(backend):
    query, key, value = (
        torch.randn(1, 2, 2, 1, 4),
        *(torch.randn(1, 9, 9, 1, 4, requires_grad=True) for _ in range(2)),
    )
    spatial_markov_attn(query, key, value, 2, backend=backend).sum().backward()
    unseen = ~Neighborhood.of_grids((2, 2), (9, 9), (2, 2)).mask().any(0).view(9, 9)
    assert unseen.any() and not key.grad[0, unseen].any() and not value.grad[0, unseen].any()
    assert value.grad[0, ~unseen].all()


def test_packed_qkv_is_not_copied():
    qkv = torch.randn(2, 6, 5, 3, 4, 8)
    query, key, value = qkv.unbind(3)
    assert query.flatten(1, 2).data_ptr() == query.data_ptr()
    out = spatial_markov_attn(query, key, value, 3)
    assert_close(out, spatial_markov_attn(*(t.contiguous() for t in (query, key, value)), 3), 1e-6, "packed")


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(backend, dtype):
    pyramid = PYRAMID_DIGITS
    inputs = draw_inputs(pyramid.neighborhood(), dtype=dtype, dim=16, cosine=True)
    leaves = [tensor.detach().requires_grad_() for tensor in inputs[:4]]
    out, lse = pyramid_markov_attn(
        *leaves[:3], pyramid, logit_scale=leaves[3], return_lse=True, backend=backend
    )
    assert out.dtype == dtype
    assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    out.backward(inputs[4])
    expected_out, _, expected = in_float64(inputs, pyramid.neighborhood(), 1.0, use_lse=False)
    tolerance = {torch.float16: 5e-3, torch.bfloat16: 3e-2, torch.float64: 1e-12}[dtype]
    assert_close(out, expected_out, tolerance, "out")
    for leaf, gradient in zip(leaves, expected):
        assert leaf.grad.dtype == leaf.dtype
        # logit_scale is float32 whatever the others are.
        bound = 1e-6 if leaf.dtype == torch.float32 and dtype == torch.float64 else tolerance
        assert_close(leaf.grad, gradient, bound * max(1.0, gradient.abs().max().item()), "gradient")


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_windows_exactly_in_half_precision(backend, dtype, seed):
    """Weights are rounded, but those of a window's keys are never 0, and all others are."""
    rng = random.Random(seed)
    for index in range(40):
        neighborhood = random_grid_neighborhood(rng, largest=11)
        n_q, n_k = neighborhood.num_queries, neighborhood.num_keys
        query, key = torch.zeros(1, n_q, 1, n_k, dtype=dtype), torch.randn(1, n_k, 1, n_k, dtype=dtype)
        value = torch.eye(n_k, dtype=dtype).view(1, n_k, 1, n_k)
        out, _ = load(backend).forward(AttentionCall(query, key, value, None, neighborhood, 1.0))
        assert torch.equal(out.view(n_q, n_k) != 0, neighborhood.mask()), (index, neighborhood)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_nan_around_the_inputs_and_in_fresh_memory_never_leaks(backend, monkeypatch):
    """Inputs are islands in NaN memory, and whatever torch.empty gives is NaN until it is written."""
    real = torch.empty

    def poisoned(*args, **kwargs):
        tensor = real(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    neighborhoods = (
        PYRAMID_DIGITS.neighborhood(),
        Neighborhood.of_grids((12, 9), (12, 9), (3, 5)),
        Neighborhood.of_grids((2, 3), (9, 12), (2, 2)),
    )
    for neighborhood in neighborhoods:
        inputs = draw_inputs(neighborhood, heads=2, dim=5)
        expected_out, expected_lse, expected = in_float64(inputs, neighborhood, 0.3)
        islands = []
        for tensor in (*inputs[:3], inputs[4]):
            b, length, h, d = tensor.shape
            sea = torch.full((b + 2, length + 40, h + 2, d + 11), float("nan"))
            islands.append(sea[1:-1, 20:-20, 1:-1, 4 : 4 + d].copy_(tensor))
        module = load(backend)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "empty", poisoned)
            call = AttentionCall(*islands[:3], None, neighborhood, 0.3)
            out, lse = module.forward(call)
            grads = module.backward(call, out, lse, islands[3], inputs[5])
        for name, actual, truth in (
            ("out", out, expected_out),
            ("lse", lse, expected_lse),
            *zip(("dq", "dk", "dv"), grads, expected),
        ):
            assert_close(actual, truth, 2e-5 * max(1.0, truth.abs().max().item()), f"{name} {neighborhood}")


def test_empty_batches():
    leaves = [torch.randn(0, 4, 4, 2, 8, requires_grad=True) for _ in range(3)]
    out, lse = spatial_markov_attn(*leaves, 3, return_lse=True)
    assert out.shape == (0, 4, 4, 2, 8) and lse.shape == (0, 4, 4, 2)
    out.sum().backward()
    assert leaves[0].grad.shape == leaves[0].shape


def grids(*shapes, dtype=torch.float32):
    return [torch.zeros(shape, dtype=dtype) for shape in shapes]


GRID = (1, 4, 4, 2, 8)


@pytest.mark.parametrize(
    "tensors, options, error, message",
    [
        (
            grids((1, 16, 2, 8), GRID, GRID),
            {},
            ValueError,
            r"key must have 4 dimensions \(B, L, heads, D\), got shape \(1, 4, 4, 2, 8\)",
        ),
        (
            grids(GRID, (1, 4, 4, 3, 8), (1, 4, 4, 3, 8)),
            {},
            ValueError,
            "heads of query must be a multiple of key's, got 2 and 3",
        ),
        (grids(GRID, (2, 4, 4, 2, 8), (2, 4, 4, 2, 8)), {}, ValueError, "one batch size, got 1 and 2"),
        (grids(GRID, (1, 4, 4, 2, 9), (1, 4, 4, 2, 9)), {}, ValueError, "one head dimension, got 8 and 9"),
        (grids(GRID, GRID, (1, 5, 4, 2, 8)), {}, ValueError, "key and value must have one shape"),
        (
            grids(*[(1, 4, 4, 2, 300)] * 3),
            {},
            ValueError,
            "head dimension must be between 1 and 256, got 300",
        ),
        (grids(*[(1, 0, 4, 2, 8)] * 3), {}, ValueError, "at least one token per axis"),
        (
            grids(GRID, GRID, GRID, dtype=torch.int32),
            {},
            TypeError,
            "query must be float16, bfloat16, float32 or float64, got torch.int32",
        ),
        ([*grids(GRID, GRID), *grids(GRID, dtype=torch.float16)], {}, TypeError, "must be of one type"),
        ([1, *grids(GRID, GRID)], {}, TypeError, "query must be a tensor, got int"),
        (grids(GRID, GRID, GRID), {"kernel_size": 0}, ValueError, "kernel_size must be at least 1, got 0"),
        (grids(GRID, GRID, GRID), {"kernel_size": (1, 2, 3)}, ValueError, "kernel_size must be an int or a"),
        (grids(GRID, GRID, GRID), {"kernel_size": 2.5}, TypeError, "kernel_size must be an int"),
        (
            grids(GRID, GRID, GRID),
            {"logit_scale": torch.ones(3)},
            ValueError,
            r"logit_scale must be \(heads,\) = \(2,\), got \(3,\)",
        ),
        (grids(GRID, GRID, GRID), {"logit_scale": 2.0}, TypeError, "logit_scale must be a tensor, got float"),
        (
            grids(GRID, GRID, GRID),
            {"backend": "natten"},
            ValueError,
            "backend must be 'auto' or one of 'triton', .*got 'natten'",
        ),
    ],
)
def test_wrong_input(tensors, options, error, message):
    with pytest.raises(error, match=message):
        spatial_markov_attn(*tensors, **options)


def test_wrong_length_for_the_pyramid():
    tensor = torch.zeros(1, 31, 2, 8)
    with pytest.raises(ValueError, match="query has 31 tokens, the pyramid has 14"):
        pyramid_markov_attn(tensor, tensor, tensor, Pyramid((1, 2, 3)))
    with pytest.raises(TypeError, match="pyramid must be a Pyramid, got list"):
        pyramid_markov_attn(tensor, tensor, tensor, [1, 2])


@pytest.mark.parametrize("what", ["key", "value"])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_how_far_a_nan_reaches(backend, what):
    """All that see it; of the others at most those that are computed together with them.

    `reference` replaces hidden scores, the others add to them. Hidden weights are 0, and 0 x NaN is NaN.
    """
    pyramid = Pyramid((3, 24), 5)
    query, key, value, *_ = draw_inputs(pyramid.neighborhood(), batch=1, heads=1)
    place = pyramid.offsets[1] + 5 * 24 + 5
    {"key": key, "value": value}[what][0, place] = float("nan")
    out = pyramid_markov_attn(query, key, value, pyramid, backend=backend)
    reached = out.isnan().any(-1).flatten()
    seen = pyramid.mask()[:, place]
    assert reached[seen].all()
    if (backend, what) == ("reference", "key"):
        assert torch.equal(reached, seen)
    elif backend != "reference":
        assert not reached[: pyramid.offsets[1]].any(), "another scale"
    if backend == "tiled":  # 8 x 8 queries and the keys around them
        rows, cols = torch.where(reached[pyramid.offsets[1] :].view(24, 24))
        assert int(rows.max()) < 16 and int(cols.max()) < 16
