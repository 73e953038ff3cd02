"""The recomputing halves of a block give the values and gradients of the plain ones, and keep little."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.core.activations import blank, counting, example, fake, held_per_image, storage_key
from benchmarks.peers.plain_pytorch import PlainModel
from mvar_models import MVAR, VAR, MVARConfig, VARConfig
from mvar_models.networks.recompute import after_attention, modulated_linear, modulated_norm

from tiny_models import tiny_mvar, tiny_var


def halves(dtype=torch.float64, width=6, tokens=5, batch=2):
    """Operands of both halves; gates and shifts of every image differ."""

    def leaf(*shape):
        return torch.randn(shape, dtype=dtype).requires_grad_()

    modulation = [leaf(batch, 1, width) for _ in range(6)]
    linears = [
        nn.Linear(i, o).to(dtype)
        for i, o in ((width, 3 * width), (width, width), (width, 2 * width), (2 * width, width))
    ]
    return leaf(batch, tokens, width), leaf(batch, tokens, width), modulation, linears


def ours(hidden, attended, modulation, linears):
    gate1, gate2, scale1, scale2, shift1, shift2 = modulation
    qkv, proj, fc1, fc2 = linears
    first = modulated_linear(hidden, scale1, shift1, qkv.weight, qkv.bias)
    return first, after_attention(hidden, attended, gate1, proj, scale2, shift2, fc1, fc2, gate2)


def plain(hidden, attended, modulation, linears):
    gate1, gate2, scale1, scale2, shift1, shift2 = modulation
    qkv, proj, fc1, fc2 = linears
    first = qkv(modulated_norm(hidden, scale1, shift1))
    hidden = hidden + proj(attended) * gate1
    return first, hidden + fc2(
        F.gelu(fc1(modulated_norm(hidden, scale2, shift2)), approximate="tanh")
    ) * gate2


def gradients(run, operands):
    hidden, attended, modulation, linears = operands
    leaves = [hidden, attended, *modulation, *(p for linear in linears for p in (linear.weight, linear.bias))]
    outs = run(*operands)
    weights = [
        torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype) for out in outs
    ]
    return [out.detach() for out in outs], torch.autograd.grad(outs, leaves, weights)


def test_gradients_against_finite_differences(seed):
    hidden, attended, modulation, linears = halves(width=3, tokens=2)
    parameters = [p for linear in linears for p in (linear.weight, linear.bias)]

    def run(hidden, attended, *rest):
        pairs = zip(rest[6::2], rest[7::2])
        return ours(
            hidden, attended, rest[:6], [SimpleNamespace(weight=weight, bias=bias) for weight, bias in pairs]
        )

    assert torch.autograd.gradcheck(run, (hidden, attended, *modulation, *parameters))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_the_same_bits_and_gradients_agree(seed, dtype):
    operands = halves(dtype, width=32, tokens=20, batch=3)
    (first, second), found = gradients(ours, operands)
    (first_plain, second_plain), right = gradients(plain, operands)
    assert torch.equal(first, first_plain)
    assert torch.equal(second, second_plain)
    _assert_near(found, right, 1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(seed, dtype):
    """The bits are those of autocast's own casts; gradients are as near to float32's as autocast's are."""
    operands = halves(torch.float32, width=32, tokens=20, batch=3)
    _, exact = gradients(plain, operands)
    with torch.autocast("cpu", dtype):
        values, found = gradients(ours, operands)
        values_plain, right = gradients(plain, operands)
    assert all(torch.equal(a, b) for a, b in zip(values, values_plain)) and all(
        g.dtype == torch.float32 for g in found
    )
    for gradient, autocast, true in zip(found, right, exact):
        error, allowed = ((g - true).abs().max() for g in (gradient, autocast))
        # The plain bias gradient is rounded once more, by luck correctly, so one rounding is always allowed.
        assert error <= 2 * allowed + torch.finfo(dtype).eps * true.abs().max()


def test_validation_inside_autocast_leaves_no_casts_without_gradient(seed):
    hidden, attended, modulation, linears = halves(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            ours(hidden, attended, modulation, linears)
        first, second = ours(hidden, attended, modulation, linears)
        (first.float().sum() + second.sum()).backward()
    assert all(linear.weight.grad is not None and linear.weight.grad.any() for linear in linears)


def test_frozen_parameters_get_no_gradient(seed):
    hidden, attended, modulation, linears = halves(torch.float32)
    for linear in linears:
        linear.requires_grad_(False)
    linears[2].weight.requires_grad_(True)
    sum(out.sum() for out in ours(hidden, attended, modulation, linears)).backward()
    assert linears[2].weight.grad is not None
    assert linears[3].weight.grad is None
    assert all(linear.bias.grad is None for linear in linears)


@pytest.mark.parametrize("tiny", [tiny_var, tiny_mvar])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_of_a_model_is_that_of_the_plain_one(seed, tiny, checkpointing):
    model = tiny()
    inputs = example(model, 3, torch.device("cpu"))
    expected = PlainModel(model, torch.float32).loss(*inputs)
    right = torch.autograd.grad(expected, list(model.parameters()))
    if checkpointing:
        model.gradient_checkpointing_enable()
    loss = model.loss(*inputs)
    assert abs(loss.item() - expected.item()) <= 1e-6 * abs(expected.item())
    _assert_near(torch.autograd.grad(loss, list(model.parameters())), right, 1e-4)


def test_checkpointing_gives_the_same_bits(seed):
    model = tiny_mvar()
    inputs = example(model, 2, torch.device("cpu"))
    runs = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(*inputs)
        runs.append((loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))))
        model.gradient_checkpointing_enable()
    assert all(torch.equal(a, b) for a, b in zip(*runs))


def test_compiles_whole(seed):
    model = tiny_mvar()
    labels, inputs, _ = example(model, 2, torch.device("cpu"))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    results = []
    for run in (model, compiled):
        model.zero_grad()
        logits = run(labels, inputs)
        logits.square().mean().backward()
        results.append((logits.detach(), *(p.grad for p in model.parameters())))
    _assert_near(results[1], results[0], 1e-5)


@pytest.mark.parametrize("kind, config", [(VAR, VARConfig), (MVAR, MVARConfig)])
def test_the_released_shape_keeps_little(kind, config):
    """d16 at 256 px with bfloat16 autocast keeps 11 n C values per block and image, 2 checkpointed."""
    unit = 680 * 1024 * 2
    with fake():
        model = blank(kind, config(depth=16))
        held = held_per_image(model, model.loss)
        plain = held_per_image(model, PlainModel(model, torch.bfloat16).loss)
        model.gradient_checkpointing_enable()
        checkpointed = held_per_image(model, model.loss)
    assert 16 * 11 * unit <= held.bytes <= 16 * 11 * unit + 3 * unit <= 250e6
    assert 16 * 2 * unit <= checkpointed.bytes <= 16 * 2 * unit + 3 * unit <= 60e6
    assert plain.bytes > 2 * held.bytes
    assert sum(held.parts.values()) == held.bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fake_tensors_are_counted_like_real_ones(dtype):
    counts, config = [], tiny_mvar().config
    for surroundings in (fake, contextlib.nullcontext):
        with surroundings():
            model = blank(MVAR, config)
            counts.append(
                [held_per_image(model, loss, dtype) for loss in (model.loss, PlainModel(model, dtype).loss)]
            )
    assert counts[0] == counts[1]


def test_a_storage_is_counted_once():
    tensor = torch.ones(6, 4, requires_grad=True)
    other = torch.ones(10)
    with counting({storage_key(tensor)}) as held:
        (tensor * 1).exp().view(24)[:10].mul(other).mul(other).sum()
    assert held.bytes == 24 * 4 + 10 * 4


def _assert_near(found, right, tolerance):
    for index, (a, b) in enumerate(zip(found, right)):
        error, size = (a.double() - b.double()).abs().max().item(), b.double().abs().max().item()
        assert error <= tolerance * size + 1e-9, (
            f"tensor {index}, shape {tuple(a.shape)}: error {error:.3e}, largest value {size:.3e}"
        )
