"""The embedded emoji models: their shapes belong together, and they do what untrained weights would not."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from mvar_models import VQVAE
from mvar_models.evaluation.metrics import metric
from mvar_models.images import to_tensor

SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


def face():
    """A yellow face on white, drawn large and made small, as smooth as the real ones."""
    image = Image.new("RGB", (256, 256), "white")
    pen = ImageDraw.Draw(image)
    pen.ellipse((16, 16, 240, 240), fill="#ffcc33")
    for left in (80, 152):
        pen.ellipse((left, 88, left + 24, 128), fill="#402000")
    pen.arc((72, 96, 184, 200), 20, 160, fill="#402000", width=12)
    return image.resize((64, 64), Image.Resampling.LANCZOS)


@pytest.fixture(scope="module")
def vqvae():
    return VQVAE.from_pretrained("vae-emoji")


@torch.inference_mode()
def test_the_vqvae_keeps_a_face(vqvae):
    assert vqvae.config.sides == SIDES
    assert vqvae.config.resolution == 64
    original = to_tensor(face())[None]
    codes = vqvae.encode(original)
    assert codes.shape == (1, 680)
    (found,) = metric("psnr")(vqvae.decode(codes), original)
    shuffled = codes[:, torch.from_numpy(np.random.default_rng(0).permutation(680))]
    (broken,) = metric("psnr")(vqvae.decode(shuffled), original)
    print(f"{found:.1f} dB; codes in another order {broken:.1f} dB")
    assert found > 24
    assert broken < found - 6
