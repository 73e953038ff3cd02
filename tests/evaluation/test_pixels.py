"""Pixels as features: as they are up to 16 x 16, averages of blocks above."""

import pytest
import torch

from mvar_models.evaluation.features.pixels import Pixels


def images(height, width):
    return torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (5, 16), (16, 16)])
def test_small_images_are_flattened_as_they_are(size):
    given = images(*size)
    assert torch.equal(Pixels()(given).features, given.flatten(1).float())


@pytest.mark.parametrize("size", [(32, 32), (64, 32), (16, 48)])
def test_larger_images_are_means_of_blocks(size):
    given = images(*size)
    height, width = size
    blocks = given.double().reshape(2, 16, height // 16, 16, width // 16, 3)
    expected = blocks.mean((2, 4)).flatten(1).float()
    torch.testing.assert_close(Pixels()(given).features, expected, rtol=1e-6, atol=1e-4)


def test_other_arguments_are_refused():
    with pytest.raises(ValueError, match=r"weights.*pixels.*'some\.pth'"):
        Pixels(weights="some.pth")
    with pytest.raises(ValueError, match=r"dtype must be float32.*bfloat16"):
        Pixels(dtype=torch.bfloat16)
