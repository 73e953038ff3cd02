"""What is read and written: any strides, offsets past 32 bits, only the inputs, all of the outputs."""

import importlib

import pytest
import torch

from mvar_kernels import Neighborhood, Pyramid, pyramid_markov_attn
from mvar_kernels.backends import AttentionCall
from mvar_kernels.dispatch import load

from chosen_cases import once, some
from kernel_cases import PYRAMID_DIGITS, draw_inputs
from triton_support import DEVICE, NAMES, assert_same


def test_packed_views_and_expanded_gradient():
    neighborhood = PYRAMID_DIGITS.neighborhood()
    query, key, value, _, _, _ = draw_inputs(neighborhood, packed=True, device=DEVICE)
    assert not query.is_contiguous()
    grad_out = torch.ones(1, device=DEVICE).expand(query.shape)
    backend = load("triton")
    call = AttentionCall(query, key, value, None, neighborhood, 0.3)
    out, lse = backend.forward(call)
    grads = backend.backward(call, out, lse, grad_out, None)
    copies = [tensor.contiguous() for tensor in (query, key, value)]
    again = backend.forward(AttentionCall(*copies, None, neighborhood, 0.3))
    assert torch.equal(out, again[0]) and torch.equal(lse, again[1])
    for first, second in zip(
        grads[:3],
        backend.backward(
            AttentionCall(*copies, None, neighborhood, 0.3), out, lse, grad_out.contiguous(), None
        ),
    ):
        assert torch.equal(first, second)


@pytest.mark.parametrize("cosine", some([False, True], 1))
def test_nan_around_the_inputs_never_leaks(cosine):
    """Inputs are islands in NaN memory; padded tokens, heads and columns must not be read into a result."""
    neighborhood = PYRAMID_DIGITS.neighborhood()
    *plain, _ = draw_inputs(neighborhood, heads=2, dim=5, cosine=cosine, device=DEVICE)
    factor, backend = plain[3], load("triton")
    expected = backend.forward(AttentionCall(*plain[:3], factor, neighborhood, 0.3))
    islands = []
    for tensor in (*plain[:3], plain[4]):
        b, length, h, d = tensor.shape
        sea = torch.full((b + 2, length + 40, h + 2, d + 11), float("nan"), device=DEVICE)
        sea[1:-1, 20:-20, 1:-1, 4 : 4 + d] = tensor
        islands.append(sea[1:-1, 20:-20, 1:-1, 4 : 4 + d])
    call = AttentionCall(*islands[:3], factor, neighborhood, 0.3)
    out, lse = backend.forward(call)
    assert_same(out, expected[0], cosine, "out")
    assert_same(lse, expected[1], cosine, "lse")
    grads = backend.backward(call, out, lse, islands[3], None)
    again = backend.backward(AttentionCall(*plain[:3], factor, neighborhood, 0.3), *expected, plain[4], None)
    for name, first, second in zip(NAMES, grads, again):
        if first is not None:
            assert_same(first, second, cosine, name)


@pytest.mark.parametrize("far_axis, cosine", once(["tokens", "head dimension"], [False, True]))
def test_offsets_past_two_to_the_31(far_axis, cosine):
    """Elements 80 or 320 million apart; memory that is never touched costs nothing."""
    neighborhood = Neighborhood.of_grids((5, 6), (5, 6), (3, 3))
    *plain, _ = draw_inputs(neighborhood, batch=1, heads=1, dtype=torch.float16, cosine=cosine, device=DEVICE)
    strides = (0, 80_000_000, 0, 1) if far_axis == "tokens" else (0, 8, 0, 320_000_000)
    memory = torch.empty(2_400_000_000 + 1_000, dtype=torch.float16, device=DEVICE)
    far = []
    for index, tensor in enumerate((*plain[:3], plain[4])):
        far.append(
            memory.as_strided(
                tensor.shape, strides, 240 * index if far_axis == "head dimension" else 8 * index
            )
        )
        far[-1].copy_(tensor)
    assert sum((size - 1) * stride for size, stride in zip(far[0].shape, far[0].stride())) > 2**31
    backend, factor = load("triton"), plain[3]
    call = AttentionCall(*far[:3], factor, neighborhood, 0.3)
    out, lse = backend.forward(call)
    grads = backend.backward(call, out, lse, far[3], None)
    expected = backend.forward(AttentionCall(*plain[:3], factor, neighborhood, 0.3))
    assert_same(out, expected[0], cosine, "out")
    assert_same(lse, expected[1], cosine, "lse")
    again = backend.backward(AttentionCall(*plain[:3], factor, neighborhood, 0.3), *expected, plain[4], None)
    for name, first, second in zip(NAMES[:3], grads, again):
        assert_same(first, second, cosine, name)


@pytest.mark.parametrize("cosine", some([False, True], 1))
def test_every_element_is_written(monkeypatch, cosine):
    """torch.empty filled with NaN: whatever a kernel does not write shows."""
    real = torch.empty

    def poisoned(*args, **kwargs):
        tensor = real(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)
    for neighborhood in (PYRAMID_DIGITS.neighborhood(), Neighborhood.of_grids((2, 3), (9, 12), (2, 2))):
        query, key, value, factor, grad_out, _ = draw_inputs(neighborhood, cosine=cosine, device=DEVICE)
        backend = load("triton")
        call = AttentionCall(query, key, value, factor, neighborhood, 0.3)
        out, lse = backend.forward(call)
        grads = backend.backward(call, out, lse, grad_out, None)
        assert all(tensor.isfinite().all() for tensor in (out, lse, *grads) if tensor is not None)
        unseen = ~neighborhood.mask().any(0)
        assert not grads[1][:, unseen.to(DEVICE)].any() and not grads[2][:, unseen.to(DEVICE)].any()


def test_changing_one_scale_leaves_the_others_bit_identical():
    """Outputs and gradients."""
    pyramid = PYRAMID_DIGITS
    query, key, value, logit_scale, grad_out, _ = draw_inputs(
        pyramid.neighborhood(), cosine=True, device=DEVICE
    )

    def results(*operands):
        leaves = [tensor.detach().requires_grad_() for tensor in operands]
        out = pyramid_markov_attn(*leaves, pyramid, logit_scale=logit_scale, backend="triton")
        return [out.detach(), *torch.autograd.grad(out, leaves, grad_out)]

    before = results(query, key, value)
    for scale in some(range(pyramid.num_scales), 2):
        changed = [tensor.clone() for tensor in (query, key, value)]
        for tensor in changed:
            tensor[:, pyramid.scale_slice(scale)] *= -37
        inside = torch.zeros(pyramid.length, dtype=torch.bool, device=DEVICE)
        inside[pyramid.scale_slice(scale)] = True
        after = results(*changed)
        for first, second in zip(before, after):
            assert torch.equal(first[:, ~inside], second[:, ~inside])
        assert not torch.equal(before[0][:, inside], after[0][:, inside])


@pytest.mark.parametrize("what", ["key", "value"])
def test_a_nan_reaches_the_queries_of_its_tiles_and_no_others(what):
    """At least those that see it, at most those of tiles that gather it; masks are added."""
    pyramid = Pyramid((3, 20), 5)
    neighborhood = pyramid.neighborhood()
    query, key, value, *_ = draw_inputs(neighborhood, batch=1, heads=1, dim=16, device=DEVICE)
    place = pyramid.offsets[1] + 5 * 20 + 5
    {"key": key, "value": value}[what][0, place] = float("nan")
    call = AttentionCall(query, key, value, None, neighborhood, 0.25)
    out, _ = load("triton").forward(call)
    reached = out.isnan().any(-1).flatten().cpu()
    assert reached[pyramid.mask()[:, place]].all()
    launch = importlib.import_module("mvar_kernels.backends.triton.launch")
    t = launch._tables(neighborhood, "query", launch._row(call).forward, query)
    gathering = torch.zeros(pyramid.length + 1, dtype=torch.bool)
    for tile, (first, last) in enumerate(zip(t.start.tolist(), t.start.tolist()[1:])):
        if (t.looped[first:last] == place).any():
            gathering[t.fixed[tile].long().cpu()] = True
    assert not (reached & ~gathering[:-1]).any()
