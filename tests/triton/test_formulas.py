"""Derivatives that the kernels do not compute: tangents, second and per-sample gradients, by the formulas."""

import torch

from mvar_kernels import Pyramid, pyramid_markov_attn

from kernel_cases import assert_close
from triton_support import DEVICE

PYRAMID = Pyramid((1, 2, 9), 3, 1)


def test_all_derivatives_are_those_of_dense_attention(seed):
    x, t = (torch.randn(2, PYRAMID.length, 2, 16, device=DEVICE) for _ in range(2))
    factor = torch.full((2,), 3.0, device=DEVICE)

    def energy(backend, x):
        out = pyramid_markov_attn(x, x, x, PYRAMID, logit_scale=factor, backend=backend)
        # The sine of a large float32 would enlarge its rounding.
        return (out.square().sum((1, 2, 3)) / 100).sin().sum()

    def derivatives(backend):
        def of(x):
            return energy(backend, x)

        gradient = torch.func.grad(of)
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(of(leaf), leaf, create_graph=True)
        return [
            torch.func.jvp(of, (x,), (t,))[1],
            torch.func.vmap(gradient)(x[:, None]),
            torch.func.jvp(gradient, (x,), (t,))[1],
            *torch.autograd.grad(first.square().sum(), leaf),
        ]

    for number, (ours, true) in enumerate(zip(derivatives("triton"), derivatives("reference"))):
        assert_close(ours, true, 1e-4 * float(true.abs().max()), f"derivative {number}")
