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


@torch.no_grad()
def test_latents_are_decoded_in_slices(monkeypatch):
    """The slices bound memory and change nothing."""
    vqvae, f_hat = tiny_vqvae(), torch.randn(5, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("mvar_models.networks.vqvae._PIXELS_AT_A_TIME", 2 * 16 * 16)
    slices = list(vqvae.decode_slices(f_hat))
    assert [len(part) for part in slices] == [2, 2, 1]
    assert torch.allclose(torch.cat(slices), vqvae.decode_latents(f_hat), atol=1e-5)


@pytest.mark.parametrize("channels_last", [False, True])
@torch.no_grad()
def test_the_decoder_alone_can_be_converted(channels_last):
    """Pixels are those of float32 within the rounding of bfloat16; codes and encoder do not change."""
    vqvae, f_hat = tiny_vqvae(), torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    indices = torch.randint(24, (2, 21), generator=torch.Generator().manual_seed(0))
    expected, sums = vqvae.decode_latents(f_hat), vqvae.quantizer.embed(indices)
    vqvae.convert_decoder(torch.bfloat16, channels_last)
    found = vqvae.decode_latents(f_hat)
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().mean() < 0.01
    assert torch.equal(vqvae.quantizer.embed(indices), sums)
    assert {each.dtype for each in vqvae.encoder.parameters()} == {torch.float32}
    last = vqvae.decoder.conv_out.weight.is_contiguous(memory_format=torch.channels_last)
    assert last == channels_last
    vqvae.convert_decoder(torch.float32)
    assert vqvae.decode_latents(f_hat).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_norms_of_half_precision_are_those_of_float32_rounded(seed, dtype):
    """Sums of squares in half precision would be off by percents."""
    norm = tiny_vqvae().decoder.norm_out
    features = (3 * torch.randn(2, 32, 16, 16) + 5).to(dtype)
    expected = torch.nn.functional.group_norm(features.float(), 32, norm.weight, norm.bias, norm.eps)
    found = norm.to(dtype)(features).float()
    assert (found - expected).abs().max() <= 2 * torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.parametrize("layer", ["norm_out", "middle.0.conv2", "middle.1.proj"])
@torch.no_grad()
def test_hooks_see_what_layers_return(seed, layer):
    """SiLU and the sums of residual blocks write into a layer's output only where nobody else can hold it."""
    vqvae, seen = tiny_vqvae(), []
    hooked = vqvae.decoder.get_submodule(layer)
    hooked.register_forward_hook(lambda m, args, out: seen.append((out, out.clone())))
    vqvae.decode_latents(torch.randn(1, 4, 4, 4))
    assert torch.equal(*seen[0])
