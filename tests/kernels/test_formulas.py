"""Derivatives on every backend: forward mode, second order, and the transforms of torch.func."""

import functools

import pytest
import torch
from torch.autograd import forward_ad

from mvar_kernels import Pyramid, SpatialMarkovAttention, neighborhood_attn, ops, spatial_markov_attn
from mvar_kernels.backends import AttentionCall, reference
from mvar_kernels.backends.tiled import formulas
from mvar_kernels.pyramid import Neighborhood

from chosen_cases import once, pairwise, some
from kernel_cases import CPU_BACKENDS, assert_close, draw_inputs

CASES = {
    "one tile": Neighborhood.of_grids((3, 4), (4, 3), (2, 3)),
    "tiles": Neighborhood.of_grids((19, 10), (19, 10), (5, 4)),
    "cross-scale": Neighborhood.of_grids((18, 9), (11, 20), (3, 7)),
    "two scales": Pyramid((1, 3, 9, 12), 3, 2, previous_scales=1).neighborhood(),
    "block-causal": Pyramid((1, 2, 3, 4)).causal_neighborhood(),
}
KINDS = {"dot": False, "cosine": True}
BACKENDS = ("auto", *CPU_BACKENDS)
COSINE = pytest.mark.parametrize("cosine", KINDS.values(), ids=list(KINDS))
BACKEND = pytest.mark.parametrize("backend", BACKENDS)
EVERYWHERE = pytest.mark.parametrize(
    "neighborhood, cosine, backend",
    [
        pytest.param(CASES[case], KINDS[kind], backend, id=f"{backend}-{kind}-{case}")
        for case, kind, backend in pairwise(list(CASES), list(KINDS), BACKENDS)
    ],
)


def operands(neighborhood, cosine, dtype=torch.float64, seed=0, batch=2, dim=6):
    inputs = draw_inputs(neighborhood, batch=batch, dim=dim, dtype=dtype, cosine=cosine, seed=seed)[:4]
    return tuple(tensor.to(dtype) for tensor in inputs if tensor is not None)


def attention(neighborhood, backend, cosine):
    scale = 1.0 if cosine else 0.4

    def call(query, key, value, factor=None):
        if backend == "truth":
            return reference.attend(AttentionCall(query, key, value, factor, neighborhood, scale))
        out, lse = neighborhood_attn(
            query, key, value, neighborhood, scale=scale, logit_scale=factor, return_lse=True, backend=backend
        )
        return out, lse.transpose(1, 2)

    return call


def energy(call):
    """A function of the operands whose gradients and second derivatives are all different from zero."""

    def of(*tensors):
        out, lse = call(*tensors)
        return (out * out.detach().cos()).square().sum() + lse.sin().sum()

    return of


def assert_same(actual, expected, what, tolerance=1e-9):
    for number, (ours, true) in enumerate(zip(actual, expected, strict=True)):
        assert_close(ours, true, tolerance * max(1.0, float(true.abs().max())), f"{what}, {number}")


@functools.cache
def true_tangents(neighborhood, cosine):
    """Return dense attention's tangents along all operands, then along each alone."""
    primals, along = operands(neighborhood, cosine), operands(neighborhood, cosine, seed=1)
    # Tangents are linear: those along all operands are the sum of those along each.
    each = []
    for which in range(len(primals)):
        only = tuple(direction * (place == which) for place, direction in enumerate(along))
        each.append(torch.func.jvp(attention(neighborhood, "truth", cosine), primals, only)[1])
    return [tuple(map(sum, zip(*each))), *each]


@EVERYWHERE
def test_tangents_are_those_of_dense_attention(neighborhood, cosine, backend):
    """torch.func.jvp, and dual numbers of each operand alone."""
    primals, along = operands(neighborhood, cosine), operands(neighborhood, cosine, seed=1)
    ours = attention(neighborhood, backend, cosine)
    whole, *each = true_tangents(neighborhood, cosine)
    out, tangent = torch.func.jvp(ours, primals, along)
    assert_same(out, ours(*primals), "primal")
    assert_same(tangent, whole, "tangent")
    for which, expected in enumerate(each):
        with forward_ad.dual_level():
            mixed = list(primals)
            mixed[which] = forward_ad.make_dual(primals[which], along[which])
            found = [forward_ad.unpack_dual(each).tangent for each in ours(*mixed)]
        assert_same(
            [torch.zeros(()) if each is None else each for each in found], expected, f"operand {which}"
        )


@pytest.mark.parametrize("cosine, backend", once(list(KINDS.values()), BACKENDS))
def test_all_orders_and_nestings(cosine, backend):
    """PyTorch's own checks: gradients of gradients, forward over reverse, batched; by finite differences."""
    # Finite differences take a call per number that goes in.
    neighborhood = Neighborhood.of_grids((2, 3), (3, 2), (2, 2))
    leaves = [t.requires_grad_() for t in operands(neighborhood, cosine, batch=1, dim=2)]
    call = attention(neighborhood, backend, cosine)
    assert torch.autograd.gradcheck(call, leaves, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, leaves, check_fwd_over_rev=True)


@functools.cache
def derivatives(neighborhood, backend, cosine):
    """Return the second derivatives of an energy, then the third ones."""
    leaves = [tensor.requires_grad_() for tensor in operands(neighborhood, cosine)]
    of = energy(attention(neighborhood, backend, cosine))
    first = torch.autograd.grad(of(*leaves), leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves, create_graph=True)
    third = torch.autograd.grad(sum(g.sin().sum() for g in second), leaves)
    return [*(each.detach() for each in second), *third]


@EVERYWHERE
def test_second_and_third_derivatives(neighborhood, cosine, backend):
    ours, true = (derivatives(neighborhood, name, cosine) for name in (backend, "truth"))
    assert_same(ours, true, "derivative", 1e-8)


@functools.cache
def transformed(neighborhood, backend, cosine):
    """Return grad; per-sample gradients of shared and of own factors; Hessian times vector; jacobians."""
    primals = operands(neighborhood, cosine)
    along = operands(neighborhood, cosine, seed=1)
    call = attention(neighborhood, backend, cosine)
    everything = tuple(range(len(primals)))

    def of_one(query, key, value, *factor):
        return energy(call)(query[None], key[None], value[None], *factor)

    per_sample = torch.func.grad(of_one, everything)
    own_factors = [torch.stack([factor, 2 * factor]) for factor in primals[3:]]
    values = primals[2].unsqueeze(3) * torch.arange(1.0, 4)[:, None]
    return [
        *torch.func.grad(energy(call), everything)(*primals),
        *torch.func.vmap(per_sample, (0, 0, 0, None)[: len(primals)])(*primals),
        *torch.func.vmap(per_sample, (0, 0, 0, 0)[: len(primals)])(*primals[:3], *own_factors),
        torch.func.vmap(lambda v: call(*primals[:2], v, *primals[3:])[0], 3, 3)(values),
        *torch.func.jvp(torch.func.grad(energy(call), everything), primals, along)[1],
        *torch.func.vmap(lambda t: torch.func.jvp(call, primals, t)[1])(
            tuple(torch.stack([t, -2 * t]) for t in along)
        ),
        *torch.func.vjp(call, *primals)[1](attention(neighborhood, "truth", cosine)(*along)),
    ]


@EVERYWHERE
def test_transforms_of_torch_func(neighborhood, cosine, backend):
    ours, true = (transformed(neighborhood, name, cosine) for name in (backend, "truth"))
    assert_same(ours, true, "transform", 1e-8)


def test_small_grids_that_auto_gives_to_pytorch():
    """Their first derivatives are PyTorch's; second ones raise one line, unless a backend is named."""
    x = torch.randn(1, 5, 5, 2, 8, dtype=torch.float64, requires_grad=True)
    first = torch.autograd.grad(spatial_markov_attn(x, x, x, 3).square().sum(), x, create_graph=True)[0]
    named = spatial_markov_attn(x, x, x, 3, backend="sdpa").square().sum()
    assert_close(first, torch.autograd.grad(named, x)[0], 1e-12, "gradient")
    with pytest.raises(NotImplementedError, match=r"mvar_kernels.*second derivatives.*backend='sdpa'"):
        first.square().sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_tangents_in_other_types(dtype):
    """They have the type of what they belong to, and autocast does not round what is computed inside."""
    neighborhood = CASES["tiles"]
    primals, along = operands(neighborhood, True, dtype), operands(neighborhood, True, dtype, seed=1)
    call = attention(neighborhood, "auto", True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        (out, lse), (dout, dlse) = torch.func.jvp(call, primals, along)
    assert out.dtype == dout.dtype == dtype and lse.dtype == dlse.dtype == torch.float32
    exact = [tuple(t.double() for t in tensors) for tensors in (primals, along)]
    true = torch.func.jvp(attention(neighborhood, "truth", True), *exact)[1]
    assert_close(dout, true[0], 2 * torch.finfo(dtype).eps * true[0].abs().max() + 1e-5, "tangent of out")
    assert_close(dlse, true[1], 1e-4, "tangent of lse")


def test_what_trains_with_tangents():
    """Gradients of a loss of output and tangent, as MeanFlow and consistency models take, and their bits."""
    module = SpatialMarkovAttention(12, 2, 3, cosine=True, backend="tiled").double()
    dense = SpatialMarkovAttention(12, 2, 3, cosine=True, backend="reference").double()
    dense.load_state_dict(module.state_dict())
    x, t = (torch.randn(2, 11, 11, 12, dtype=torch.float64) for _ in range(2))

    def gradients(network):
        network.zero_grad()
        out, tangent = torch.func.jvp(network, (x,), (t,))
        ((out - tangent.detach()).square().sum() + tangent.square().sum()).backward()
        return [parameter.grad for parameter in network.parameters()]

    first = gradients(module)
    first = [gradient.clone() for gradient in first]
    assert all(map(torch.equal, first, gradients(module)))
    assert_same(first, gradients(dense), "gradient")


@pytest.mark.parametrize("cosine", some(KINDS.values(), 1))
def test_transforms_and_torch_compile(cosine):
    """Compiled code takes part or is left while the transform lasts; with fullgraph one line says so."""
    neighborhood = CASES["tiles"]
    primals, along = operands(neighborhood, cosine), operands(neighborhood, cosine, seed=1)
    call = attention(neighborhood, "auto", cosine)

    def dual(*tensors):
        with forward_ad.dual_level():
            pairs = map(forward_ad.make_dual, tensors, along)
            return forward_ad.unpack_dual(call(*pairs)[0]).tangent

    def jvp(function):
        return lambda *tensors: torch.func.jvp(function, tensors, along)[1]

    def compiled(function, **options):
        torch._dynamo.reset()
        return torch.compile(function, backend="aot_eager", **options)

    expected = jvp(call)(*primals)
    assert_same(compiled(jvp(call))(*primals), expected, "compiled jvp")
    assert_same(jvp(compiled(call))(*primals), expected, "jvp of compiled")
    assert_same([compiled(dual)(*primals)], expected[:1], "compiled dual numbers")
    gradient = torch.func.grad(energy(call))
    assert_same([compiled(gradient)(*primals)], [gradient(*primals)], "compiled grad")
    # torch 2.6 cannot trace an exception inside a context manager, and says that.
    with pytest.raises(Exception, match=r"mvar_kernels: torch\.compile cannot trace|not exception handler"):
        compiled(jvp(call), fullgraph=True)(*primals)
    assert_same(compiled(call, fullgraph=True)(*primals), call(*primals), "compiled after a transform")


def test_formulas_need_no_square_of_the_length():
    """Scores of 40 x 40 tokens with windows of 7 take less than a fifth of L x L."""
    neighborhood = Neighborhood.of_grids((40, 40), (40, 40), (7, 7))
    largest = 0
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        for queries, keys, bias in formulas._tiles(neighborhood, torch.zeros(1)):
            assert bias is not None
            largest += queries.numel() * keys.shape[1]
    assert largest < 1600 * 1600 / 5


@BACKEND
def test_the_operators_themselves(backend):
    """`attention_backward` has schema, fake kernel and derivatives as PyTorch wants them."""
    neighborhood = CASES["one tile"]
    query, key, value, factor, grad_out, grad_lse = draw_inputs(neighborhood, batch=1, cosine=True)
    leaves = [tensor.requires_grad_() for tensor in (query, key, value, factor, grad_out, grad_lse)]
    arguments = neighborhood.encode(), 0.3, backend
    out, lse = (each.detach() for each in ops.attention(*leaves[:4], *arguments))
    torch.library.opcheck(
        ops.attention_backward,
        (grad_out, grad_lse, query, key, value, out, lse, factor, *arguments),
        # AOTAutograd, the fourth, has no second derivatives.
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


@BACKEND
def test_shapes_on_a_device_without_autocast_or_kernels(backend):
    """Tensors of shapes alone, as on any device that PyTorch knows and we do not."""
    x = torch.zeros(1, 12, 12, 2, 8, device="meta")

    def call(x):
        return spatial_markov_attn(x, x, x, 3, backend=backend)

    assert torch.func.jvp(call, (x,), (x,))[1].shape == call(x).shape == x.shape
    assert torch.func.grad(lambda x: call(x).sum())(x).shape == x.shape
    with pytest.raises(TypeError, match="query, key and value must be of one type"):
        spatial_markov_attn(x.half(), x, x, 3, backend=backend)
