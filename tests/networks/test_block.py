"""A block against its formula in plain PyTorch, what its backward recomputes, and where it may write."""

import contextlib
import math

import pytest
import torch
import torch.nn.functional as F

from benchmarks.core.activations import blank, counting, example, fake, held_per_image
from benchmarks.core.trace import trace
from benchmarks.peers.plain_pytorch import PlainModel
from mvar_kernels import Pyramid
from mvar_kernels.pyramid import Neighborhood
from mvar_models import MVAR, VAR, MVARConfig, VARConfig
from mvar_models.networks.block import TransformerBlock
from mvar_models.networks.layers import gelu, multiply_add, recomputed
from mvar_models.networks.state import BlockContext, KVCache, ScaleState

from chosen_cases import some
from tiny_models import tiny_markov_var, tiny_mvar, tiny_var

SIDES, WIDTH, HEADS = (1, 2), 16, 2


def make(shared, cosine):
    config = VARConfig(
        depth=1, width=WIDTH, num_heads=HEADS, sides=SIDES, shared_adaln=shared, cosine_attention=cosine
    )
    block = TransformerBlock(config, 0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.3)
    return block


def norm(hidden, scale, shift):
    return F.layer_norm(hidden, (WIDTH,), eps=1e-6) * (1 + scale) + shift


def plain(block, hidden, six, keep=(1, 1)):
    """Dense attention over all tokens, heads by `chunk`."""
    gate1, gate2, scale1, scale2, shift1, shift2 = six.unsqueeze(2).unbind(1)
    attention = block.attention
    query, key, value = (
        part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for part in (attention.qkv(norm(hidden, scale1, shift1)) + attention.bias()).chunk(3, dim=-1)
    )
    scale = attention.scale
    if attention.log_scale is not None:
        query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
        scale = attention.log_scale.clamp_max(math.log(100)).exp()[:, None, None]
    weights = (query @ key.transpose(-1, -2) * scale).softmax(-1)
    hidden = hidden + attention.proj((weights @ value).transpose(1, 2).flatten(2)) * gate1 * keep[0]
    inner = F.gelu(block.mlp.fc1(norm(hidden, scale2, shift2)), approximate="tanh")
    return hidden + block.mlp.fc2(inner) * gate2 * keep[1]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_a_block_is_its_formula(seed, shared, cosine, grad):
    block, hidden = make(shared, cosine), torch.randn(2, 4, WIDTH)
    condition = torch.randn(2, 6 * WIDTH if shared else WIDTH)
    if shared:
        six = condition.unflatten(-1, (6, -1)) + block.modulation_offset
    else:
        six = block.modulation(condition).unflatten(-1, (6, -1))
    with torch.set_grad_enabled(grad):
        found = block(hidden, condition, None, BlockContext(Pyramid((2,)).neighborhood(), "reference"))
    assert torch.allclose(found, plain(block, hidden, six), atol=1e-4)


def test_paths_are_dropped_per_image_and_branch(seed):
    block, hidden, condition = make(False, True), torch.randn(2, 4, WIDTH), torch.randn(2, WIDTH)
    neighborhood = Pyramid((2,)).neighborhood()
    keep = torch.tensor([[0.0, 2.0], [0.0, 1.0]])
    found = block(hidden, condition, keep, BlockContext(neighborhood, "reference"))
    six = block.modulation(condition).unflatten(-1, (6, -1))
    assert torch.allclose(found[0], hidden[0], atol=1e-6)
    assert torch.allclose(found[1:], plain(block, hidden[1:], six[1:], (2, 1)), atol=1e-4)


def test_a_cache_extends_the_keys(seed):
    """Queries of the second call attend to the tokens of both."""
    block, hidden, condition = make(False, True), torch.randn(2, 5, WIDTH), torch.randn(2, WIDTH)
    pyramid, state = Pyramid(SIDES), ScaleState(condition, KVCache())
    whole = block(hidden, condition, None, BlockContext(pyramid.causal_neighborhood(), "reference"))
    block(hidden[:, :1], condition, None, BlockContext(Pyramid((1,)).neighborhood(), "reference", state))
    window = Neighborhood.of_grids((2, 2), (1, 5), (1, 5))
    second = block(hidden[:, 1:], condition, None, BlockContext(window, "reference", state))
    assert torch.allclose(second, whole[:, 1:], atol=1e-4)


def test_factors_of_cosine_attention_are_clamped_at_100(seed):
    block, hidden, condition = make(False, True), torch.randn(1, 4, WIDTH), torch.randn(1, WIDTH)
    neighborhood = Pyramid((2,)).neighborhood()
    results = []
    for value in (math.log(100), 10.0):
        with torch.no_grad():
            block.attention.log_scale.fill_(value)
        results.append(block(hidden, condition, None, BlockContext(neighborhood, "reference")))
    assert torch.equal(*results)


def gradients(block, run=recomputed, dtype=torch.float32, **options):
    """Return the block's output and the gradients of its inputs and of all that is trained, given others."""
    torch.manual_seed(7)
    hidden = torch.randn(3, 5, WIDTH, dtype=dtype, requires_grad=True)
    condition = torch.randn(3, WIDTH, dtype=dtype, requires_grad=True)
    context = BlockContext(Pyramid(SIDES).neighborhood(), "reference")
    keep = torch.tensor([[1.0, 0.0, 2.0], [0.5, 1.0, 2.0]])
    out = run(block, **options)(hidden, condition, keep, context)
    trained = [parameter for parameter in block.parameters() if parameter.requires_grad]
    weights = torch.linspace(-1, 2, out.numel()).view(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, [hidden, condition, *trained], weights)]


def plainly(block):
    return block


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_the_same_bits(everything, dtype):
    block = make(False, True).to(dtype)
    found = gradients(block, dtype=dtype, everything=everything)
    assert all(map(torch.equal, found, gradients(block, plainly, dtype)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    block = make(False, True)
    with torch.autocast("cpu", dtype):
        found, right = gradients(block), gradients(block, plainly)
    assert all(map(torch.equal, found, right))
    assert all(gradient.dtype == torch.float32 for gradient in found)


def test_validation_inside_autocast_leaves_no_casts_without_gradient():
    block = make(False, True)
    hidden, condition = torch.randn(2, 5, WIDTH), torch.randn(2, WIDTH)
    context = BlockContext(Pyramid(SIDES).neighborhood(), "reference")
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            recomputed(block)(hidden, condition, None, context)
        recomputed(block)(hidden, condition, None, context).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in block.parameters())


def test_frozen_parameters_get_no_gradient():
    block = make(False, True).requires_grad_(False)
    block.mlp.fc1.weight.requires_grad_(True)
    *_, found = gradients(block)
    assert found.shape == block.mlp.fc1.weight.shape and found.any()


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


@pytest.mark.parametrize("tiny", [tiny_mvar, tiny_markov_var])
def test_checkpointing_gives_the_same_bits(seed, tiny):
    model = tiny()
    inputs = example(model, 2, torch.device("cpu"))
    runs = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(*inputs)
        runs.append((loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))))
        model.gradient_checkpointing_enable()
    assert all(torch.equal(a, b) for a, b in zip(*runs))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiles_whole(seed, checkpointing):
    model = tiny_mvar()
    model.gradient_checkpointing = checkpointing
    labels, inputs, _ = example(model, 2, torch.device("cpu"))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    results = []
    for run in (model, compiled):
        model.zero_grad()
        logits = run(labels, inputs)
        logits.square().mean().backward()
        results.append((logits.detach(), *(p.grad for p in model.parameters())))
    _assert_near(results[1], results[0], 1e-5)
    with torch.no_grad():
        _assert_near([compiled(labels, inputs)], [model(labels, inputs)], 1e-5)


@pytest.mark.parametrize("kind, config", some([(VAR, VARConfig), (MVAR, MVARConfig)], 1))
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


@pytest.mark.parametrize("dtype", some([torch.float32, torch.bfloat16], 1))
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
    with counting() as held:
        values = (tensor * 1).exp()  # which its backward needs, unlike the product
        out = values.view(24)[:10].mul(other).sum()
    assert held.bytes == 24 * 4 + out.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("overwrite", [False, True])
@torch.no_grad()
def test_sums_in_place_have_the_bits_of_the_usual_ones(seed, dtype, overwrite):
    values, factor, offset = (torch.randn(3, n, 40, dtype=dtype) for n in (7, 1, 7))
    expected, kept = values * factor + offset, values.clone()
    assert torch.equal(multiply_add(values, factor, offset, overwrite), expected)
    assert torch.equal(values, expected if overwrite else kept)


@torch.no_grad()
def test_values_of_a_smaller_type_are_not_written_into(seed):
    """Under autocast the residual is float32 and the branch is not; for the head's norm it is reversed."""
    values, factor, offset = torch.randn(3, 7, 40), torch.randn(3, 1, 40), torch.randn(3, 7, 40)
    for operands in (
        (values.bfloat16(), factor.bfloat16(), offset),
        (values.bfloat16(), factor, offset),
        (values, factor.bfloat16(), offset.bfloat16()),
    ):
        expected = operands[0] * operands[1] + operands[2]
        found = multiply_add(*operands, overwrite=True)
        assert found.dtype == torch.float32 and torch.equal(found, expected)


@torch.no_grad()
def test_on_other_devices_a_product_and_a_sum_are_one_kernel():
    """Except where types differ, which the fused kernel does not take."""
    hidden, branch, gate = (torch.randn(3, n, 40, device="meta") for n in (7, 7, 1))
    assert trace(lambda: multiply_add(branch, gate, hidden)).kernels == {"addcmul": 1}
    assert "addcmul" not in trace(lambda: multiply_add(branch.bfloat16(), gate, hidden)).kernels


@pytest.mark.parametrize("make", [tiny_var, tiny_mvar])
@torch.no_grad()
def test_hooks_on_linear_layers_see_what_they_return(make):
    """A hook that keeps an output must not find it overwritten later."""
    model, seen = make(), []
    for linear in (model.blocks[0].attention.proj, model.blocks[0].mlp.fc1, model.blocks[0].mlp.fc2):
        linear.register_forward_hook(lambda module, args, out: seen.append((out, out.clone())))
    state = model.new_state(torch.tensor([0, 1]))
    for scale, tokens in enumerate((0, 4, 16)):
        model.step(state, torch.randn(2, tokens, 4), scale)
    assert len(seen) == 9
    assert all(torch.equal(kept, then) for kept, then in seen)


def _assert_near(found, right, tolerance):
    for index, (a, b) in enumerate(zip(found, right)):
        error, size = (a.double() - b.double()).abs().max().item(), b.double().abs().max().item()
        assert error <= tolerance * size + 1e-9, (
            f"tensor {index}, shape {tuple(a.shape)}: error {error:.3e}, largest value {size:.3e}"
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_gelu_in_half_precision_is_that_of_float64_rounded(seed, dtype):
    """Within half a unit in the last place and a little, over several slices."""
    values = (4 * torch.randn(3, 100_001)).to(dtype)
    expected, kept = F.gelu(values.double(), approximate="tanh"), values.clone()
    found = gelu(values)
    assert torch.equal(values, kept)
    assert torch.equal(gelu(values, overwrite=True), found) and torch.equal(values, found)
    error = (found.double() - expected).abs()
    assert found.dtype == dtype and (error <= 0.51 * torch.finfo(dtype).eps * expected.abs() + 1e-7).all()
