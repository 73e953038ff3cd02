"""DINOv2's transformer against its formulas, written out in float64 with random weights."""

import math

import pytest
import torch

from mvar_models.evaluation.features.vit import VisionTransformer

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
