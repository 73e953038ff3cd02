"""Augmentation: small affine maps, fixed by their parameters, which never leave a black border."""

import numpy as np
import torch

from mvar_models.data.transforms import MAX_SHIFT, affine, random_affine


def test_parameters_of_zero_change_nothing(seed):
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(affine(images, np.zeros((2, 6))), images, rtol=0, atol=1e-4)


def test_a_full_shift_moves_by_its_share_of_the_side(seed):
    """The first parameter shifts along x, the second along y; the border is repeated."""
    images = torch.rand(2, 3, 50, 50)
    pixels = round(MAX_SHIFT * 50)
    assert pixels == 3
    along_x, along_y = affine(images, np.eye(6)[:2])
    expected_x = torch.cat([images[0, :, :, pixels:], images[0, :, :, -1:].expand(3, 50, pixels)], 2)
    expected_y = torch.cat([images[1, :, pixels:], images[1, :, -1:].expand(3, pixels, 50)], 1)
    torch.testing.assert_close(along_x, expected_x, rtol=0, atol=1e-3)
    torch.testing.assert_close(along_y, expected_y, rtol=0, atol=1e-3)


def test_an_image_of_one_colour_keeps_it(seed):
    """Padding with zeros would show here, whatever the map."""
    images = torch.full((8, 3, 16, 16), -0.75)
    found = affine(images, random_affine(np.random.default_rng(seed), 8))
    torch.testing.assert_close(found, images, rtol=0, atol=1e-5)


def test_parameters_are_drawn_from_the_whole_range():
    drawn = random_affine(np.random.default_rng(0), 1000)
    assert drawn.shape == (1000, 6)
    assert np.abs(drawn).max() <= 1
    assert (drawn.min(0) < -0.9).all()
    assert (drawn.max(0) > 0.9).all()
    assert np.array_equal(drawn, random_affine(np.random.default_rng(0), 1000))
