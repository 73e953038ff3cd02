"""Holes are filled from what surrounds them, and from nothing else."""

import torch

from mvar_models.sampling.filling import fill_holes


def holes(height, width, rows, columns):
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, rows, columns] = True
    return mask


def test_what_is_known_stays_and_what_is_hidden_does_not_count(seed):
    image = torch.rand(1, 3, 13, 9)
    mask = holes(13, 9, slice(3, 10), slice(2, 7))
    filled = fill_holes(image, mask)
    other = torch.where(mask[:, None], torch.rand(1, 3, 13, 9), image)
    assert torch.equal(filled[:, :, ~mask[0]], image[:, :, ~mask[0]])
    assert torch.equal(fill_holes(other, mask), filled)


def test_a_hole_in_one_colour_takes_it():
    image = torch.full((1, 3, 12, 20), 0.3)
    mask = holes(12, 20, slice(2, 12), slice(5, 20))
    image[:, :, mask[0]] = -1
    assert torch.allclose(fill_holes(image, mask), torch.full((1, 3, 12, 20), 0.3), atol=1e-6)


def test_a_fill_lies_between_its_surroundings():
    image = torch.zeros(1, 1, 16, 16)
    image[..., 8:] = 1
    filled = fill_holes(image, holes(16, 16, slice(4, 12), slice(4, 12)))[0, 0, 8]
    assert ((filled >= 0) & (filled <= 1)).all()
    assert filled[4] < 0.35 and filled[11] > 0.65


def test_images_with_and_without_holes_mix():
    images = torch.rand(3, 3, 8, 8)
    mask = torch.zeros(3, 8, 8, dtype=torch.bool)
    mask[1] = True
    filled = fill_holes(images, mask)
    assert torch.equal(filled[[0, 2]], images[[0, 2]])
    assert torch.equal(filled[1], torch.zeros(3, 8, 8)), "nothing is known"
