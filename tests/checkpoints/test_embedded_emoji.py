"""The embedded emoji models: their shapes belong together, and they do what untrained weights would not."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from mvar_models import VQVAE
from mvar_models.evaluation.reconstruction import psnr
from mvar_models.images import to_tensor
from mvar_models.pipeline import pipeline_for

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
    (found,) = psnr(vqvae.decode(codes), original)
    shuffled = codes[:, torch.from_numpy(np.random.default_rng(0).permutation(680))]
    (broken,) = psnr(vqvae.decode(shuffled), original)
    print(f"{found:.1f} dB; codes in another order {broken:.1f} dB")
    assert found > 24
    assert broken < found - 6


@pytest.fixture(scope="module", params=["var-emoji", "mvar-emoji"])
def pipeline(request):
    return pipeline_for(request.param)


@torch.inference_mode()
def test_the_transformer_knows_a_face(pipeline, vqvae):
    """Codes of a face are likelier as a face than as a flag, and far likelier than by chance."""
    model = pipeline.model
    assert model.config.sides == SIDES
    assert len(model.config.class_names) == 18
    if model.config.model_type == "mvar":
        assert (model.config.kernel_size, model.config.dense_scales) == (7, 8)
    codes = vqvae.encode(to_tensor(face())[None])
    inputs = vqvae.quantizer.scale_inputs(codes)
    nats = {}
    for name in ("fluent-smileys-emotion", "noto-smileys-emotion", "noto-flags"):
        labels = torch.tensor([pipeline.label_of(name)])
        nats[name] = model.token_losses(labels, inputs, codes).mean().item()
    print(nats)
    assert nats["noto-flags"] > nats["noto-smileys-emotion"] + 0.05
    assert nats["noto-smileys-emotion"] < np.log(model.config.vocab_size) - 2


def test_it_draws_on_white_in_its_classes_colours(pipeline):
    """Like the emoji: corners are white, faces are yellow in the middle."""
    pictures = pipeline(["noto-smileys-emotion", "fluent-smileys-emotion"], num_images_per_label=4, seed=0)
    pixels = np.stack([np.asarray(picture) for picture in pictures]).astype(float) / 255
    assert pixels.shape == (8, 64, 64, 3)
    corners = pixels[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    middle = pixels[:, 16:48, 16:48].mean((0, 1, 2))
    print(corners.mean(), middle)
    assert corners.mean() > 0.95
    assert middle[0] > middle[2] + 0.2
    assert middle[1] > middle[2] + 0.1
