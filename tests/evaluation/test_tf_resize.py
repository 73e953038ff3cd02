"""TensorFlow 1's bilinear resize: pixels worked out by hand, at the sides of images that are evaluated."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from mvar_models.evaluation.features.tf_resize import tf1_resize


def ramp(side):
    """A pixel's value is 1000 times its row plus its column, which bilinear weights leave exact."""
    return (1000.0 * torch.arange(side)[:, None] + torch.arange(side))[None, None].double()


# Side of the image, row and column of the result, and the value by hand: row i lies at i * side / 299, and
# what lies beyond the last row or column is that row or column.
BY_HAND = [
    (32, 0, 0, 0),
    (32, 1, 0, 1000 * 32 / 299),  # 0.107 of the way from row 0 to row 1; half-pixel centres would give 0
    (32, 149, 0, 1000 * (15 + 283 / 299)),  # 149 * 32 = 4768 = 15 * 299 + 283
    (32, 0, 289, 30 + 278 / 299),  # 289 * 32 = 9248 = 30 * 299 + 278
    (32, 290, 290, 1001 * 31),  # 290 * 32 = 9280 = 31 * 299 + 11: in the last row and column, nothing beyond
    (32, 298, 298, 1001 * 31),
    (64, 150, 7, 1000 * (32 + 32 / 299) + 1 + 149 / 299),  # 9600 = 32 * 299 + 32; 448 = 299 + 149
    (64, 294, 295, 1000 * (62 + 278 / 299) + 63),  # 18816 = 62 * 299 + 278; 18880 = 63 * 299 + 43
    (256, 150, 298, 1000 * (128 + 128 / 299) + 255),  # 38400 = 128 * 299 + 128; 76288 = 255 * 299 + 43
    (256, 297, 3, 1000 * (254 + 86 / 299) + 2 + 170 / 299),  # 76032 = 254 * 299 + 86; 768 = 2 * 299 + 170
    (
        512,
        1,
        2,
        1000 * (1 + 213 / 299) + 3 + 127 / 299,
    ),  # reduced without antialiasing: two pixels of the row
    (512, 298, 299 // 2, 1000 * (510 + 86 / 299) + 255 + 43 / 299),  # 152576 = 510 * 299 + 86
]


@pytest.mark.parametrize("side, row, column, expected", BY_HAND)
def test_pixels_worked_out_by_hand(side, row, column, expected):
    found = tf1_resize(ramp(side), 299)
    # Positions are float32, as TensorFlow computes them: 512 px leave an error of 512 / 2^24 of a pixel.
    assert found[0, 0, row, column].item() == pytest.approx(expected, abs=0.1)
    assert found.shape == (1, 1, 299, 299)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (256, 256), (512, 512), (37, 301), (1, 1), (299, 299)])
def test_every_pixel_against_the_rule_in_fractions(size, seed):
    """Random images in float64, with positions rounded to float32 as TensorFlow rounds them."""
    height, width = size
    image = torch.rand(height, width, dtype=torch.float64) * 255
    found = tf1_resize(image[None, None], 299)[0, 0]

    def places(length):
        step = np.float32(length) / np.float32(299)
        exact = [Fraction(float(np.float32(index) * step)) for index in range(299)]
        return [(min(math.floor(at), length - 1), at - min(math.floor(at), length - 1)) for at in exact]

    rng = np.random.default_rng(seed)
    rows, columns = places(height), places(width)
    for row, column in [(0, 0), (298, 298), *rng.integers(0, 299, (300, 2)).tolist()]:
        (top, down), (left, across) = rows[row], columns[column]
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        expected = sum(
            float(weight) * image[r, c].item()
            for r, c, weight in (
                (top, left, (1 - down) * (1 - across)),
                (top, right, (1 - down) * across),
                (bottom, left, down * (1 - across)),
                (bottom, right, down * across),
            )
        )
        assert found[row, column].item() == pytest.approx(expected, abs=1e-9)


def test_the_same_size_is_the_same_image(seed):
    images = torch.randint(0, 256, (2, 3, 299, 299)).float()
    assert torch.equal(tf1_resize(images, 299), images)


def test_channels_and_images_are_apart(seed):
    images = torch.rand(2, 3, 20, 30)
    whole = tf1_resize(images, 50)
    for image in range(2):
        for channel in range(3):
            alone = tf1_resize(images[image : image + 1, channel : channel + 1], 50)
            assert torch.equal(whole[image, channel], alone[0, 0])


def test_it_is_not_pytorchs_rule():
    """Half-pixel centres, the usual mistake, are another image."""
    image = ramp(32).float()
    theirs = torch.nn.functional.interpolate(image, (299, 299), mode="bilinear", align_corners=False)
    assert (tf1_resize(image, 299) - theirs).abs().max() > 100
