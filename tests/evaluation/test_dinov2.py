"""DINOv2: its transformer by formulas in float64, its preprocessing, and files that are refused."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from mvar_models.evaluation.features import dinov2
from mvar_models.evaluation.features.dinov2 import WEIGHTS, VisionTransformer, prepared, vit_large
from mvar_models.evaluation.features.network import feature_network


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


WIDTH, HEADS, PATCH = 24, 3, 5


def network_of(seed, grid, depth=3):
    torch.manual_seed(seed)
    network = VisionTransformer(width=WIDTH, depth=depth, num_heads=HEADS, patch_size=PATCH, grid=grid)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.double().eval()


def norm(values, weight, bias):
    mean = values.mean(-1, keepdim=True)
    variance = ((values - mean) ** 2).mean(-1, keepdim=True)
    return (values - mean) / (variance + 1e-6).sqrt() * weight + bias


def linear(values, state, name):
    return values @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def by_formula(state, image, positions):
    """The class token of one image (3, H, W), patch by patch and head by head."""
    kernel = state["patch_embed.proj.weight"].flatten(1)
    rows, columns = image.shape[1] // PATCH, image.shape[2] // PATCH
    tokens = [state["cls_token"][0, 0]]
    for row in range(rows):
        for column in range(columns):
            patch = image[:, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
            tokens.append(kernel @ patch.flatten() + state["patch_embed.proj.bias"])
    tokens = torch.stack(tokens) + positions
    size = WIDTH // HEADS
    for index in range(1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))):
        block = {name.removeprefix(f"blocks.{index}."): value for name, value in state.items()}
        normed = norm(tokens, block["norm1.weight"], block["norm1.bias"])
        qkv = linear(normed, block, "attn.qkv")
        heads = []
        for head in range(HEADS):
            query, key, value = (
                qkv[:, part * WIDTH + head * size : part * WIDTH + (head + 1) * size] for part in range(3)
            )
            scores = (query @ key.T / math.sqrt(size)).exp()
            heads.append(scores / scores.sum(-1, keepdim=True) @ value)
        tokens = tokens + block["ls1.gamma"] * linear(torch.cat(heads, -1), block, "attn.proj")
        hidden = linear(norm(tokens, block["norm2.weight"], block["norm2.bias"]), block, "mlp.fc1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        tokens = tokens + block["ls2.gamma"] * linear(hidden, block, "mlp.fc2")
    return norm(tokens[0], state["norm.weight"], state["norm.bias"])


def cubic(distance):
    """Keys' kernel with a = -0.75, which bicubic sampling takes."""
    distance, a = abs(distance), -0.75
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return a * (distance**3 - 5 * distance**2 + 8 * distance - 4) if distance < 2 else 0.0


def sampling_matrix(grid, count):
    """Weights (count, grid) of bicubic sampling at a ratio of (count + 0.1) / grid, clamped at the border."""
    weights = torch.zeros(count, grid, dtype=torch.float64)
    for target in range(count):
        place = (target + 0.5) * grid / (count + 0.1) - 0.5
        for near in range(math.floor(place) - 1, math.floor(place) + 3):
            weights[target, min(max(near, 0), grid - 1)] += cubic(place - near)
    return weights


@torch.no_grad()
def test_the_grid_that_it_was_trained_for(seed):
    network = network_of(seed, grid=4)
    images = torch.randn(2, 3, 20, 20, dtype=torch.float64)
    state = network.state_dict()
    expected = torch.stack([by_formula(state, image, state["pos_embed"][0]) for image in images])
    torch.testing.assert_close(network(images), expected, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("rows, columns", [(3, 3), (5, 3), (7, 8)])
def test_positions_of_other_grids_are_sampled_as_released(seed, rows, columns):
    grid = 6
    network = network_of(seed, grid)
    image = torch.randn(1, 3, rows * PATCH, columns * PATCH, dtype=torch.float64)
    state = network.state_dict()
    table = state["pos_embed"][0, 1:].reshape(grid, grid, WIDTH)
    down, across = sampling_matrix(grid, rows), sampling_matrix(grid, columns)
    sampled = torch.einsum("rg,ch,ghw->rcw", down, across, table).reshape(rows * columns, WIDTH)
    positions = torch.cat([state["pos_embed"][0, :1], sampled])
    # The network samples in float32, as the released program does.
    torch.testing.assert_close(network(image)[0], by_formula(state, image[0], positions), rtol=0, atol=1e-5)
