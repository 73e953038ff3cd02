"""Steps without gradients give the values of the usual ones, and write only where they may."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.core.trace import trace
from mvar_models.networks.inference import add_gated, factored_norm, gelu
from mvar_models.networks.recompute import modulated_norm

from tiny_models import tiny_mvar, tiny_var

TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@TYPES
@torch.no_grad()
def test_norms_have_the_bits_of_the_usual_ones(seed, dtype):
    hidden, scale, shift = (torch.randn(3, n, 40, dtype=dtype) for n in (7, 1, 1))
    kept = hidden.clone()
    assert torch.equal(factored_norm(hidden, 1 + scale, shift), modulated_norm(hidden, scale, shift))
    assert torch.equal(hidden, kept)


@torch.no_grad()
def test_norms_of_float32_take_vectors_in_half_precision(seed):
    """As the head's do."""
    hidden, scale, shift = (torch.randn(3, n, 40) for n in (7, 1, 1))
    scale, shift = scale.bfloat16(), shift.bfloat16()
    found = factored_norm(hidden, 1 + scale, shift)
    assert found.dtype == torch.float32
    assert torch.equal(found, modulated_norm(hidden, scale, shift))


@torch.no_grad()
def test_on_other_devices_a_product_and_a_sum_are_one_kernel():
    """Except where types differ, which the fused kernel does not take."""
    hidden, branch, gate = (torch.randn(3, n, 40, device="meta") for n in (7, 7, 1))
    assert trace(lambda: add_gated(hidden, branch, gate, False)).kernels == {"addcmul": 1}
    found = trace(lambda: factored_norm(hidden, gate, gate)).kernels
    assert found == {"native_layer_norm": 1, "addcmul": 1}
    assert "addcmul" not in trace(lambda: add_gated(hidden, branch.bfloat16(), gate, False)).kernels


@TYPES
@pytest.mark.parametrize("in_place", [False, True])
@torch.no_grad()
def test_gated_sums_have_the_bits_of_the_usual_ones(seed, dtype, in_place):
    hidden, branch, gate = (torch.randn(3, n, 40, dtype=dtype) for n in (7, 7, 1))
    expected, kept = hidden + branch * gate, branch.clone()
    assert torch.equal(add_gated(hidden, branch, gate, in_place), expected)
    assert torch.equal(branch, expected if in_place else kept)


@torch.no_grad()
def test_a_branch_of_a_smaller_type_is_not_written_into(seed):
    """Under autocast the residual is float32 and the branch is not."""
    hidden, branch, gate = (
        torch.randn(1, 2, 8),
        torch.randn(1, 2, 8).bfloat16(),
        torch.randn(1, 1, 8).bfloat16(),
    )
    found = add_gated(hidden, branch, gate, in_place=True)
    assert found.dtype == torch.float32
    assert torch.equal(found, hidden + branch * gate)


@pytest.mark.parametrize("in_place", [False, True])
@torch.no_grad()
def test_gelu_has_the_bits_of_the_usual_one_in_float32(seed, in_place):
    values = 3 * torch.randn(3, 7, 40)
    expected, kept = F.gelu(values, approximate="tanh"), values.clone()
    assert torch.equal(gelu(values, in_place), expected)
    assert torch.equal(values, expected if in_place else kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_gelu_in_half_precision_is_that_of_float64_rounded(seed, dtype):
    """Within half a unit in the last place and a little, over several slices."""
    values = (4 * torch.randn(3, 100_001)).to(dtype)
    expected = F.gelu(values.double(), approximate="tanh")
    found = gelu(values.clone(), in_place=True)
    assert found.dtype == dtype
    error = (found.double() - expected).abs()
    assert (error <= 0.51 * torch.finfo(dtype).eps * expected.abs() + 1e-7).all()


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


def test_gradients_take_the_usual_way(seed):
    values = torch.randn(2, 3, requires_grad=True)
    gelu(values, in_place=True).sum().backward()
    assert values.grad.abs().min() > 0
