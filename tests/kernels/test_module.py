"""SpatialMarkovAttention in a model, and `python -m mvar_kernels`: the report and its exit code."""

import pytest
import torch

from mvar_kernels import SpatialMarkovAttention, spatial_markov_attn
from mvar_kernels import __main__ as selfcheck
from mvar_kernels.backends import tiled


@pytest.mark.parametrize("cosine", [False, True])
def test_module_is_qkv_attention_projection(cosine):
    torch.manual_seed(0)
    module = SpatialMarkovAttention(24, 3, kernel_size=(3, 5), cosine=cosine)
    features = torch.randn(2, 7, 6, 24)
    qkv = module.qkv(features).view(2, 7, 6, 3, 3, 8)
    factor = module.log_scale.exp() if cosine else None
    out = spatial_markov_attn(*qkv.unbind(3), (3, 5), logit_scale=factor, backend="reference")
    assert torch.allclose(module(features), module.proj(out.flatten(3)), atol=1e-5)
    module(features).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_the_factor_is_clamped():
    module = SpatialMarkovAttention(8, 1, cosine=True)
    with torch.no_grad():
        module.log_scale.fill_(50.0)
    high = module(torch.ones(1, 2, 2, 8))
    with torch.no_grad():
        module.log_scale.fill_(torch.tensor(100.0).log())
    assert torch.equal(high, module(torch.ones(1, 2, 2, 8)))


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"dim \(10\) must be a multiple of num_heads \(3\)"):
        SpatialMarkovAttention(10, 3)
    with pytest.raises(ValueError, match=r"features must be \(B, H, W, dim\)"):
        SpatialMarkovAttention(8, 2)(torch.zeros(2, 8))


def test_selfcheck_passes(capsys):
    assert selfcheck.main() == 0
    printed = capsys.readouterr().out
    assert "auto takes" in printed and "triton     not here: CPU tensors need TRITON_INTERPRET=1" in printed


def test_selfcheck_notices_a_wrong_backend(monkeypatch, capsys):
    original = tiled.forward
    monkeypatch.setattr(tiled, "forward", lambda *args: (original(*args)[0] * 1.01, original(*args)[1]))
    assert selfcheck.main() == 1
    assert "WRONG" in capsys.readouterr().out
