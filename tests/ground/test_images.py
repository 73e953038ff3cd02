"""Tensors to images and back, and where a grid puts each image."""

import numpy as np
import pytest
import torch
from PIL import Image

from mvar_models.images import grid, to_pil, to_tensor, to_uint8


def test_bytes_survive_the_way_to_a_tensor_and_back(seed):
    """Every byte value is there, so a wrong factor or a truncation shows."""
    values = np.random.default_rng(seed).permutation(256 * 3).astype(np.uint8).reshape(16, 16, 3)
    tensor = to_tensor(Image.fromarray(values))
    assert tensor.shape == (3, 16, 16)
    assert (tensor.min(), tensor.max()) == (-1, 1)
    assert np.array_equal(to_uint8(tensor[None])[0], values)
    (image,) = to_pil(tensor[None])
    assert np.array_equal(np.array(image), values)


def test_values_are_rounded_to_nearest_and_clamped():
    levels = torch.tensor([10.4, 10.6, -30.0, 300.0]) / 127.5 - 1
    images = levels.view(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert to_uint8(images)[0, :, :, 0].flatten().tolist() == [10, 11, 0, 255]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_converted_first(dtype):
    """127.5 steps in half precision would merge neighbouring levels."""
    images = (torch.rand(1, 3, 8, 8) * 2 - 1).to(dtype).requires_grad_()
    assert np.array_equal(to_uint8(images), to_uint8(images.float()))


def test_a_grid_goes_row_by_row():
    colours = ["red", "lime", "blue", "black", "yellow"]
    pasted = grid([Image.new("RGB", (4, 3), colour) for colour in colours], columns=2, gap=1)
    assert pasted.size == (9, 11)
    for index, colour in enumerate(colours):
        left, top = (index % 2) * 5, (index // 2) * 4
        cell = pasted.crop((left, top, left + 4, top + 3))
        assert cell.getcolors() == Image.new("RGB", (4, 3), colour).getcolors(), colour
    assert set(np.array(pasted)[:, 4].flatten()) == {255}, "the gap is white"
    assert pasted.crop((5, 8, 9, 11)).getcolors() == [(12, (255, 255, 255))], "the last cell is empty"


def test_a_grid_of_nothing_is_refused():
    with pytest.raises(ValueError, match="grid"):
        grid([], columns=2)
