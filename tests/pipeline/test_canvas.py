"""The square that is drawn is cut from images of any size and goes back where it was."""

import pytest
import torch

from mvar_models.pipeline.canvas import Canvas, blend_weights, extended


def mask_of(height, width, rows, columns):
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[rows, columns] = True
    return mask


def test_a_square_image_is_seen_as_it_is(seed):
    image, mask = torch.rand(3, 16, 16), mask_of(16, 16, slice(2, 5), slice(3, 9))
    pixels, redrawn = Canvas.of(image, mask).square(16)
    assert torch.equal(pixels, image * 2 - 1)
    assert torch.equal(redrawn, mask)


@pytest.mark.parametrize("height, width", [(10, 16), (16, 10), (11, 16)])
def test_what_lies_outside_the_image_is_drawn(height, width, seed):
    image, mask = torch.rand(3, height, width), torch.zeros(height, width, dtype=torch.bool)
    canvas = Canvas.of(image, mask)
    pixels, redrawn = canvas.square(16)
    top, left = (16 - height + 1) // 2, (16 - width + 1) // 2
    inside = (slice(top, top + height), slice(left, left + width))
    assert torch.equal(pixels[(slice(None), *inside)], image * 2 - 1)
    assert not redrawn[inside].any()
    assert redrawn.sum() == 256 - height * width
    assert torch.equal(pixels[:, 0, left], image[:, 0, 0] * 2 - 1), "the edge is repeated"


def test_a_crop_is_a_square_around_the_mask_inside_the_image():
    image = torch.zeros(3, 40, 60)
    canvas = Canvas.of(image, mask_of(40, 60, slice(10, 14), slice(50, 60)), crop=2)
    assert (canvas.left, canvas.top, canvas.side) == (48, 6, 12)
    whole = Canvas.of(image, mask_of(40, 60, slice(0, 0), slice(0, 0)), crop=2)
    assert (whole.left, whole.top, whole.side) == (0, -10, 60), "nothing to crop to"
    wide = Canvas.of(image, mask_of(40, 60, slice(10, 14), slice(3, 55)), crop=100)
    assert (wide.left, wide.top, wide.side) == (0, -10, 60)


def test_a_pixel_of_which_a_part_is_drawn_is_drawn():
    _, redrawn = Canvas.of(torch.zeros(3, 32, 32), mask_of(32, 32, 7, 9)).square(16)
    assert redrawn.nonzero().tolist() == [[3, 4]]
    _, redrawn = Canvas.of(torch.zeros(3, 8, 8), mask_of(8, 8, 3, 4)).square(16)
    assert redrawn.nonzero().tolist() == [[6, 8], [6, 9], [7, 8], [7, 9]]


@pytest.mark.parametrize("size", [(16, 16), (24, 40), (9, 5)])
@pytest.mark.parametrize("crop", [None, 1])
def test_kept_pixels_come_back_to_the_bit(size, crop, seed):
    image, mask = torch.rand(3, *size), torch.zeros(*size, dtype=torch.bool)
    mask[2:4, 1:4] = True
    canvas = Canvas.of(image, mask, crop)
    result = canvas.restore(torch.rand(3, 16, 16), paste=True, feather=None)
    assert torch.equal(result[:, ~mask], image[:, ~mask])
    assert (result[:, mask] != image[:, mask]).any()
    empty = Canvas.of(image, torch.zeros_like(mask), crop)
    assert torch.equal(empty.restore(torch.rand(3, 16, 16), paste=True, feather=3), image)


def test_a_mask_of_all_is_the_drawn_square(seed):
    drawn = torch.rand(3, 16, 16)
    canvas = Canvas.of(torch.rand(3, 16, 16), torch.ones(16, 16, dtype=torch.bool))
    assert torch.equal(canvas.restore(drawn, paste=True, feather=5), drawn)


def test_without_pasting_the_whole_square_is_replaced(seed):
    image, drawn = torch.rand(3, 20, 30), torch.rand(3, 8, 8)
    canvas = Canvas.of(image, mask_of(20, 30, slice(6, 12), slice(4, 10)), crop=1)
    assert canvas.side == 8
    result = canvas.restore(drawn, paste=False, feather=None)
    assert torch.equal(result[:, 5:13, 3:11], drawn)
    result[:, 5:13, 3:11] = image[:, 5:13, 3:11]
    assert torch.equal(result, image), "the square alone is replaced"


def test_the_blend_lies_inside_the_mask():
    weights = blend_weights(mask_of(9, 9, slice(1, 8), slice(1, 8)), 3)
    row = weights[4]
    assert torch.allclose(row, torch.tensor([0, 1, 2, 3, 3, 3, 2, 1, 0]) / 3)
    corner = blend_weights(mask_of(9, 9, slice(1, 9), slice(1, 9)), 8)
    assert torch.equal(corner, torch.minimum(*torch.meshgrid(*[torch.arange(9.0)] * 2, indexing="ij")) / 8)
    lonely = ~mask_of(5, 5, 2, 2)
    assert blend_weights(lonely, 4)[0].tolist() == [1, 0.75, 0.5, 0.75, 1], "rows plus columns"
    hard = blend_weights(mask_of(9, 9, slice(1, 8), slice(1, 8)), 0)
    assert hard[4].tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 0]
    assert blend_weights(torch.ones(4, 4, dtype=torch.bool), 99).eq(1).all(), "no edge, no blend"


def test_nothing_of_the_hole_stays_in_the_blend(seed):
    image, mask, drawn = (
        torch.rand(3, 16, 16),
        mask_of(16, 16, slice(4, 12), slice(4, 12)),
        torch.rand(3, 16, 16),
    )
    other = torch.where(mask, torch.rand(3, 16, 16), image)
    first, second = (Canvas.of(each, mask).restore(drawn, True, 4) for each in (image, other))
    assert torch.equal(first, second)


def test_an_image_is_enlarged_by_its_edge():
    image = torch.arange(6.0).reshape(1, 2, 3)
    large, new = extended(image, (1, 0, 2, 3))
    assert large.shape == (1, 5, 6) and new.shape == (5, 6)
    assert torch.equal(large[:, :2, 1:4], image)
    assert not new[:2, 1:4].any() and new.sum() == 30 - 6
    assert large[0, 4].tolist() == [3, 3, 4, 5, 5, 5]
