"""The features `dinov2`: names and shapes of the released file, its preprocessing, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from mvar_models.evaluation.features import dinov2
from mvar_models.evaluation.features.dinov2 import WEIGHTS, prepared, vit_large
from mvar_models.evaluation.features.network import feature_network
from mvar_models.evaluation.features.vit import VisionTransformer


def tiny():
    return VisionTransformer(width=1024, depth=1, num_heads=2, patch_size=14, grid=16)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A file of a network with one block, under the released names; the real one has 1.2 GB."""
    monkeypatch.setattr(dinov2, "vit_large", tiny)
    torch.manual_seed(0)
    path = tmp_path / "dinov2.pth"
    torch.save({**tiny().state_dict(), "mask_token": torch.zeros(1, 1024)}, path)
    return path


def test_names_and_shapes_are_the_released_ones():
    """As listed in the released file: 343 tensors of 304,368,640 numbers, one of which only training uses."""
    with torch.device("meta"):
        state = vit_large().state_dict()
    assert len(state) == 342
    assert sum(values.numel() for values in state.values()) == 304_368_640 - 1024
    shapes = {
        "cls_token": (1, 1, 1024),
        "pos_embed": (1, 1370, 1024),
        "patch_embed.proj.weight": (1024, 3, 14, 14),
        "blocks.23.attn.qkv.weight": (3072, 1024),
        "blocks.0.attn.proj.bias": (1024,),
        "blocks.0.ls1.gamma": (1024,),
        "blocks.11.mlp.fc1.weight": (4096, 1024),
        "blocks.11.norm2.bias": (1024,),
        "norm.weight": (1024,),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_images_are_resized_by_pillow_and_normalised(seed):
    images = torch.randint(0, 256, (2, 40, 30, 3), dtype=torch.uint8)
    found = prepared(images)
    assert found.shape == (2, 3, 224, 224)
    resized = np.asarray(Image.fromarray(images[1].numpy()).resize((224, 224), Image.Resampling.BICUBIC))
    for channel, (mean, deviation) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
        expected = (resized[..., channel].astype(np.float64) / 255 - mean) / deviation
        np.testing.assert_allclose(found[1, channel].numpy(), expected, atol=1e-6)


def test_images_of_224_px_keep_their_pixels(seed):
    images = torch.randint(0, 256, (1, 224, 224, 3), dtype=torch.uint8)
    back = prepared(images) * torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    back = back + torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    assert torch.equal((back * 255).round().to(torch.uint8).permute(0, 2, 3, 1), images)


def test_features_of_a_file(weights, seed):
    network = feature_network("dinov2", weights=weights)
    assert (network.distance, network.dimension, len(network.weights)) == ("FD-DINOv2", 1024, 64)
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    found = network(images)
    expected = tiny()
    state = torch.load(weights, weights_only=True)
    state.pop("mask_token")
    expected.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(found.features, expected(prepared(images)))
    assert found.spatial is None and found.logits is None
    assert network(images[:0]).features.shape == (0, 1024)
    half = feature_network("dinov2", weights=weights, dtype=torch.bfloat16)(images).features
    assert half.dtype is torch.float32
    assert 0 < (half - found.features).norm() / found.features.norm() < 0.05


def test_other_files_are_refused(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=rf"dinov2 needs {WEIGHTS.name}; .*1,218 MB"):
        feature_network("dinov2")
    other = tmp_path / "other.pth"
    torch.save({"norm.weight": torch.zeros(3)}, other)
    with pytest.raises(ValueError, match="is not DINOv2's ViT-L/14: it has no cls_token"):
        feature_network("dinov2", weights=other)
