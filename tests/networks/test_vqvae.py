"""The VQVAE's shapes, other pyramids on the same weights, and refusals; its figures are test_golden.py's."""

import pytest
import torch

from mvar_models.networks.vqvae import Downsample, GlobalAttention

from tiny_models import tiny_vqvae


@torch.no_grad()
def test_images_to_codes_and_back(seed):
    vqvae = tiny_vqvae()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    indices = vqvae.encode(images)
    assert indices.shape == (2, 21)
    assert indices.dtype == torch.int64
    decoded = vqvae.decode(indices)
    assert decoded.shape == images.shape
    assert decoded.abs().max() <= 1
    assert torch.equal(decoded, vqvae.decode_latents(vqvae.quantizer.embed(indices)))


@torch.no_grad()
def test_another_pyramid_shares_the_weights():
    vqvae = tiny_vqvae()
    other = vqvae.with_sides((1, 2, 4, 8))
    assert other.config.resolution == 32
    assert vqvae.config.resolution == 16
    assert other.encode(torch.zeros(1, 3, 32, 32)).shape == (1, 85)
    for name, parameter in vqvae.named_parameters():
        assert other.get_parameter(name).data_ptr() == parameter.data_ptr(), name
    assert vqvae.quantizer.code_usage.shape == (3, 24)
    assert other.quantizer.code_usage.shape == (4, 24)


def test_wrong_shapes_are_refused():
    vqvae = tiny_vqvae()
    with pytest.raises(ValueError, match=r"images.*16, 16.*\(1, 3, 8, 16\)"):
        vqvae.encode(torch.zeros(1, 3, 8, 16))
    with pytest.raises(ValueError, match=r"indices.*21.*\(1, 20\)"):
        vqvae.decode(torch.zeros(1, 20, dtype=torch.int64))


@torch.no_grad()
def test_downsampling_pads_below_and_to_the_right(seed):
    """A change in the last row and column is seen, and the output is exactly half the size."""
    layer, features = Downsample(2), torch.randn(1, 2, 6, 6)
    assert layer(features).shape == (1, 2, 3, 3)
    padded = torch.nn.functional.pad(features, (0, 1, 0, 1))
    expected = torch.nn.functional.conv2d(padded, layer.weight, layer.bias, stride=2)
    assert torch.allclose(layer(features), expected)


@torch.no_grad()
def test_attention_is_over_all_positions(seed):
    layer, features = GlobalAttention(32), torch.randn(2, 32, 3, 4)
    normed = layer.norm(features)
    query, key, value = (
        torch.einsum("oc,bchw->bohw", layer.qkv.weight[:, :, 0, 0], normed)
        .add(layer.qkv.bias[:, None, None])
        .flatten(2)
        .chunk(3, dim=1)
    )
    weights = (query.transpose(1, 2) @ key / 32**0.5).softmax(-1)
    out = (value @ weights.transpose(1, 2)).unflatten(2, (3, 4))
    assert torch.allclose(layer(features), features + layer.proj(out), atol=1e-5)
