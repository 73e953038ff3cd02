"""CONTRIBUTING's recipe: a backend is one file and one row of BACKENDS."""

import importlib
import inspect

import pytest
import torch

from mvar_kernels import Pyramid, SpatialMarkovAttention, dispatch, pyramid_markov_attn, spatial_markov_attn
from mvar_kernels.backends import Backend

from kernel_cases import assert_close

TOY = '''
"""Dense attention by plain matrix products; its windows are those of the oracle's mask."""

import torch

from mvar_kernels.backends import reference


def can_run(call):
    return "the toy takes no cosine attention" if call.cosine else None


def forward(call):
    logits = torch.einsum("bqhd,bkhd->bhqk", call.query, call.key) * call.scale
    logits = logits.masked_fill(~call.neighborhood.mask(), float("-inf"))
    out = torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), call.value)
    return out.contiguous(), logits.logsumexp(-1)


backward = reference.backward
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The one file and the one row."""
    (tmp_path / "toy_backend.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    monkeypatch.setitem(dispatch.BACKENDS, "toy", "toy_backend")


def drawn(*shape):
    return [torch.randn(*shape, requires_grad=True) for _ in range(3)]


def test_it_serves_the_public_functions_and_the_module(toy, seed):
    pyramid = Pyramid((1, 2, 5), 3, 1)
    for function, inputs, windows in (
        (spatial_markov_attn, drawn(2, 5, 6, 2, 8), 3),
        (pyramid_markov_attn, drawn(2, pyramid.length, 2, 8), pyramid),
    ):
        results = []
        for backend in ("toy", "reference"):
            out, lse = function(*inputs, windows, return_lse=True, backend=backend)
            results.append([out, lse, *torch.autograd.grad(out.square().sum() + lse.sum(), inputs)])
        for actual, expected in zip(*results):
            assert_close(actual, expected, 1e-5, function.__name__)
    module = SpatialMarkovAttention(16, 2, 3, backend="toy")
    features = torch.randn(1, 4, 5, 16)
    out = module(features)
    module.backend = "reference"
    assert_close(out, module(features), 1e-5, "module")


def test_its_reason_not_to_run_is_given(toy):
    query, key, value = drawn(1, 3, 3, 2, 8)
    with pytest.raises(
        RuntimeError, match="backend 'toy' cannot run here: the toy takes no cosine attention"
    ):
        spatial_markov_attn(query, key, value, 3, logit_scale=torch.ones(2), backend="toy")


def test_it_is_listed_among_the_names(toy):
    query, key, value = drawn(1, 3, 3, 2, 8)
    with pytest.raises(ValueError, match="'toy'"):
        spatial_markov_attn(query, key, value, 3, backend="toys")


def test_it_follows_the_protocol(toy):
    for name in ("can_run", "forward", "backward"):
        expected = list(inspect.signature(getattr(Backend, name)).parameters)[1:]
        assert list(inspect.signature(getattr(dispatch.load("toy"), name)).parameters) == expected
