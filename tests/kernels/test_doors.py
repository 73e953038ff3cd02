"""Our windows in other libraries: as masks of FlexAttention, and in diffusers' LTX-2.5 video decoder."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_mask, flex_attention

from mvar_kernels import Pyramid, pyramid_markov_attn
from mvar_kernels.diffusers import NeighborhoodProcessor
from mvar_kernels.pyramid import Neighborhood, WindowBlock

from kernel_cases import assert_close, random_neighborhood_of_rank


def assert_same_mask(neighborhood):
    sizes = neighborhood.num_queries, neighborhood.num_keys
    found = create_mask(neighborhood.mask_mod(), None, None, *sizes, "cpu")
    assert torch.equal(found[0, 0], neighborhood.mask())


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_mask_functions_are_the_masks(rank, seed):
    rng = random.Random(seed)
    for _ in range(5):
        assert_same_mask(random_neighborhood_of_rank(rng, rank)[1])


def test_mask_functions_of_several_blocks():
    """VAR's block-causal mask, windows over previous scales, and keys that only some queries have."""
    assert_same_mask(Pyramid([1, 2, 3, 5]).causal_neighborhood())
    assert_same_mask(Pyramid([1, 2, (3, 4), 6], 3, previous_scales=1).neighborhood())
    window = Neighborhood.of_grids((4, 5), (4, 5), 3, dilation=2).blocks[0]
    assert_same_mask(Neighborhood((window, WindowBlock(0, (4, 5), 22, (1, 3), (1, 3))), 20, 25))


def test_a_pyramid_in_flex_attention():
    pyramid = Pyramid([1, 2, 4, 7, 9], kernel_size=3, dense_scales=2)
    query, key, value = torch.randn(3, 1, pyramid.length, 2, 8).unbind()
    ours = pyramid_markov_attn(query, key, value, pyramid)
    heads_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
    theirs = flex_attention(*heads_first, block_mask=pyramid.block_mask()).transpose(1, 2)
    assert_close(ours, theirs, 1e-5, "out")


@pytest.fixture(scope="module")
def ltx():
    """The file of diffusers that has the decoder."""
    return pytest.importorskip(
        "diffusers.models.autoencoders.ltx2_diffusion_decoder", reason="the extra diffusers is not installed"
    )


def attention(ltx, kernel_size, dim=64):
    torch.manual_seed(0)
    return ltx.LTX2VideoVaeNeighborhoodAttention(dim, kernel_size, head_dim=32)


def dense(attn, hidden_states, block_mask=None):
    """A processor of SDPA under the whole mask, as FlexAttention has no backward on a CPU."""
    grid = hidden_states.shape[1:4]
    mask = Neighborhood.of_grids(grid, grid, attn.kernel_size).mask()
    heads_first = (each.flatten(1, 3).transpose(1, 2) for each in attn.project_qkv(hidden_states))
    out = F.scaled_dot_product_attention(*heads_first, mask, scale=1.0).transpose(1, 2)
    return attn.to_out[0](out.reshape(hidden_states.shape))


@pytest.mark.parametrize("grid, kernel_size", [((4, 8, 9), (3, 7, 7)), ((3, 5, 7), (3, 5, 5))])
def test_outputs_are_those_of_its_own_processor_and_gradients_right(ltx, grid, kernel_size):
    layer, features = attention(ltx, kernel_size), torch.randn(2, *grid, 64)
    out = {}
    for processor in (ltx.LTX2VideoVaeNeighborhoodAttnProcessor(), NeighborhoodProcessor()):
        layer.set_processor(processor)
        with torch.no_grad():
            out[type(processor)] = layer(features)
    theirs, ours = out.values()
    assert (ours - theirs).abs().max() <= 2e-6 * theirs.abs().max()
    features.requires_grad_()
    gradients = (
        torch.autograd.grad(processor(layer, features).square().sum(), [features, *layer.parameters()])
        for processor in (NeighborhoodProcessor(), dense)
    )
    for found, expected in zip(*gradients, strict=True):
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_window_larger_than_the_grid_is_the_grid(ltx):
    """diffusers' attention refuses such a grid before it asks a processor; both processors agree on it."""
    layer, features = attention(ltx, (3, 7, 7)), torch.randn(1, 2, 5, 9, 64)
    with pytest.raises(ValueError, match="at least its kernel size"):
        layer(features)
    with torch.no_grad():
        ours, theirs = (
            each(layer, features)
            for each in (NeighborhoodProcessor("tiled"), ltx.LTX2VideoVaeNeighborhoodAttnProcessor())
        )
    assert (ours - theirs).abs().max() <= 2e-6 * theirs.abs().max()


def test_bfloat16_and_compiled(ltx):
    layer, features = attention(ltx, (3, 5, 5)), torch.randn(1, 3, 6, 6, 64)
    layer.set_processor(NeighborhoodProcessor())
    with torch.no_grad():
        expected = layer(features)
        assert_close(
            torch.compile(layer, backend="aot_eager", fullgraph=True)(features), expected, 1e-6, "compiled"
        )
        assert_close(layer.bfloat16()(features.bfloat16()).float(), expected, 0.03, "bfloat16")


def test_the_whole_decoder_takes_the_processor_and_builds_no_mask(ltx, monkeypatch):
    torch.manual_seed(0)
    model = ltx.LTX2VideoDiffusionDecoderModel(
        latent_channels=8, decoder_head_dim=16, decoder_stage_channels=(32, 32, 32, 32, 32),
        decoder_stage_depths=(1,) * 5, decoder_stage_kernels=((1, 3, 3),) * 4,
        decoder_stage5_kernel=(3, 3, 3),
        decoder_upsample_strides=((1, 2, 2), (2, 1, 1), (1, 1, 1), (1, 1, 1)),
        decoder_upsample_channel_reductions=(1,) * 4, decoder_t_emb_dim=16,
    ).eval()  # fmt: skip
    latents = torch.randn(1, 8, 2, 3, 4)

    def decoded():
        with torch.no_grad():
            return model.decode(latents, generator=torch.Generator().manual_seed(0)).sample

    theirs = decoded()
    model.set_attn_processor(NeighborhoodProcessor())
    monkeypatch.setattr(ltx, "_neighborhood_block_mask", None)
    assert_close(decoded(), theirs, 1e-5, "video")
