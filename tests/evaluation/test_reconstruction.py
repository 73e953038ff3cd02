"""How well a VQVAE reconstructs: PSNR by its definition, the verdict, and the image that shows it."""

import numpy as np
import pytest
import torch

from mvar_models.evaluation import reconstruction as module
from mvar_models.evaluation.reconstruction import Reconstruction, psnr, reconstruct, side_by_side

from tiny_models import tiny_vqvae


def test_psnr_by_its_definition(seed):
    """The range of values is 2, so an error of 0.2 everywhere is 20 dB."""
    originals = torch.rand(2, 3, 4, 4) - 0.5
    images = originals + torch.tensor([0.2, 0.02])[:, None, None, None]
    assert psnr(images, originals).tolist() == pytest.approx([20, 40], abs=1e-3)


def test_psnr_of_equal_images_is_finite():
    images = torch.zeros(1, 3, 4, 4)
    assert psnr(images, images).isfinite().all()


@pytest.mark.parametrize(
    "found, flat, fits",
    [(18.0, 17.0, True), (17.9, 15.0, False), (12.0, 9.0, True), (11.9, 9.0, False)],
)
def test_a_vqvae_fits_by_18_db_or_3_more_than_mean_colours(found, flat, fits):
    assert Reconstruction(found, flat, None).fits is fits


@torch.no_grad()
def test_reconstruct_compares_with_the_decoded_codes(seed, monkeypatch):
    """Also where the images are decoded a few at a time."""
    vqvae, images = tiny_vqvae(), torch.rand(5, 3, 16, 16) * 2 - 1
    decoded = vqvae.decode(vqvae.encode(images))
    flat = images.mean((2, 3), keepdim=True).expand_as(images)
    for pixels in (8 * 256 * 256, 2 * 16 * 16):
        monkeypatch.setattr(module, "_PIXELS", pixels)
        found = reconstruct(vqvae, images)
        assert found.psnr == pytest.approx(psnr(decoded, images).mean().item(), abs=1e-2)
        assert found.flat == pytest.approx(psnr(flat, images).mean().item(), abs=1e-2)


def test_originals_are_drawn_above_their_reconstructions():
    """At most eight columns of 4 px with gaps of 2 px: originals white, reconstructions black."""
    white = torch.ones(9, 3, 4, 4)
    drawn = np.array(side_by_side(white, -white))
    assert drawn.shape == (4 + 2 + 4, 8 * 6 - 2, 3)
    assert (drawn[:4] == 255).all()
    assert (drawn[6:, :4] == 0).all()
