"""Gradients: the oracle against finite differences and a plain loop; every CPU backend against plain PyTorch's own error."""

import random

import pytest
import torch
import torch.nn.functional as F

from mvar_kernels import Pyramid, ops, pyramid_markov_attn, spatial_markov_attn
from mvar_kernels.backends import load, reference
from mvar_kernels.pyramid import Neighborhood

from kernel_cases import PYRAMID_DIGITS, assert_close, draw_inputs, in_float64, largest_error, random_grid_neighborhood

CPU_BACKENDS = ("reference", "sdpa", "tiled")


def loop_attention(query, key, value, logit_scale, neighborhood, scale):
    """(n_q, D), (n_k, D) twice: one query at a time, over its keys in a list."""
    mask = neighborhood.mask()
    outs, lses = [], []
    for i in range(neighborhood.num_queries):
        keys = mask[i].nonzero().flatten().tolist()
        logits = []
        for j in keys:
            product = (query[i] * key[j]).sum()
            if logit_scale is not None:
                product = logit_scale * product / (query[i].norm() * key[j].norm())
            logits.append(product * scale)
        weights = torch.stack([logit.exp() for logit in logits])
        outs.append(sum(weight * value[j] for weight, j in zip(weights, keys)) / weights.sum())
        lses.append(weights.sum().log())
    return torch.stack(outs), torch.stack(lses)


@pytest.mark.parametrize("cosine", [False, True])
def test_oracle_equals_a_loop(seed, cosine):
    rng = random.Random(seed)
    for _ in range(5):
        neighborhood = random_grid_neighborhood(rng, largest=4)
        query, key, value, logit_scale, *_ = draw_inputs(neighborhood, 1, 1, 6, torch.float64, cosine)
        out, lse = reference.attend(query, key, value, logit_scale, neighborhood, 0.7)
        factor = None if logit_scale is None else logit_scale[0].double()
        expected = loop_attention(query[0, :, 0], key[0, :, 0], value[0, :, 0], factor, neighborhood, 0.7)
        assert_close(out[0, :, 0], expected[0], 1e-12, "out")
        assert_close(lse[0, 0], expected[1], 1e-12, "lse")


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("cosine", [False, True])
def test_gradcheck(backend, cosine):
    """Finite differences in float64, of the output and of lse."""
    neighborhood = Neighborhood.of_grids((3, 4), (4, 3), (2, 3))
    query, key, value, logit_scale, *_ = draw_inputs(neighborhood, 1, 2, 5, torch.float64, cosine)
    leaves = [t.double().requires_grad_() for t in (query, key, value, logit_scale) if t is not None]

    def run(query, key, value, factor=None):
        return ops.attention(query, key, value, factor, neighborhood.encode(), 0.6, backend)

    assert torch.autograd.gradcheck(run, leaves)


def plain_pytorch(inputs, neighborhood, scale):
    """What somebody would write with SDPA in the given type: output and gradients."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs[:4]]
    query, key, value, factor = leaves
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    if factor is not None:
        q, k = F.normalize(q, dim=-1, eps=1e-12) * factor[:, None, None].to(q.dtype), F.normalize(k, dim=-1, eps=1e-12)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=neighborhood.mask(), scale=scale).transpose(1, 2)
    used = [leaf for leaf in leaves if leaf is not None]
    return out.detach(), torch.autograd.grad(out, used, inputs[4])


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factor", [None, 10.0, 100.0])
def test_error_is_within_twice_that_of_plain_pytorch(backend, dtype, factor):
    """Against float64 on the same rounded inputs; factor 100 is cosine attention at its clamp, with logits up to 100."""
    neighborhood = Pyramid((2, 5, 12), 5, 1).neighborhood()
    inputs = list(draw_inputs(neighborhood, heads=2, dim=32, dtype=dtype, cosine=factor is not None))
    if factor is not None:
        inputs[3] = torch.full_like(inputs[3], factor)
    scale = 1.0 if factor is not None else 32**-0.5
    true_out, _, true_grads = in_float64(inputs, neighborhood, scale, use_lse=False)
    plain_out, plain_grads = plain_pytorch(inputs, neighborhood, scale)
    query, key, value, logit_scale, grad_out, _ = inputs
    module = load(backend)
    out, lse = module.forward(query, key, value, logit_scale, neighborhood, scale)
    grads = module.backward(grad_out, None, query, key, value, out, lse, logit_scale, neighborhood, scale)
    pairs = [("out", out, plain_out, true_out)]
    pairs += [(name, *three) for name, *three in zip(("dq", "dk", "dv", "dlogit_scale"), grads, plain_grads, true_grads)]
    for name, ours, plain, true in pairs:
        # A few units in the last place of the largest value, for results that plain PyTorch happens to hit exactly. The gradient of
        # logit_scale is one sum of random signs over all queries, whose rounding is a matter of luck: there, of the sum's typical size.
        largest = true.abs().max().item() if name != "dlogit_scale" else 2 * (query.shape[0] * query.shape[1]) ** 0.5
        floor = 2 * torch.finfo(dtype).eps * largest
        assert largest_error(ours, true) <= 2 * largest_error(plain, true) + floor, name


@pytest.mark.parametrize("which", range(4))
def test_each_operand_alone(which):
    neighborhood = PYRAMID_DIGITS.neighborhood()
    inputs = draw_inputs(neighborhood, cosine=True)
    operands = [tensor.detach().requires_grad_(index == which) for index, tensor in enumerate(inputs[:4])]
    out = pyramid_markov_attn(*operands[:3], PYRAMID_DIGITS, logit_scale=operands[3])
    out.backward(inputs[4])
    expected = in_float64(inputs, neighborhood, 1.0, use_lse=False)[2]
    assert_close(operands[which].grad, expected[which], 1e-4 * max(1.0, expected[which].abs().max().item()), "gradient")
    assert all(operand.grad is None for index, operand in enumerate(operands) if index != which)


def test_what_autograd_keeps():
    """q, k, v, out, lse and logit_scale: nothing of the size of the scores, no normalised copies."""
    inputs = draw_inputs(PYRAMID_DIGITS.neighborhood(), cosine=True)
    leaves = [tensor.detach().requires_grad_() for tensor in inputs[:4]]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        out, lse = pyramid_markov_attn(*leaves[:3], PYRAMID_DIGITS, logit_scale=leaves[3], return_lse=True)
    known = {tensor.untyped_storage().data_ptr() for tensor in (*leaves, out, lse)}
    assert len(kept) == 6 and {tensor.untyped_storage().data_ptr() for tensor in kept} == known


def test_lse_alone_has_gradients():
    query, key, value = (torch.randn(1, 5, 5, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    _, lse = spatial_markov_attn(query, key, value, 3, return_lse=True)
    lse.sum().backward()
    assert query.grad.any() and key.grad.any() and not value.grad.any()
