"""How well a VQVAE reconstructs, how its codes are used, and images that networks make when read."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mvar_models import VQVAE
from mvar_models.data.digits import Digits
from mvar_models.data.open import open_images
from mvar_models.evaluation import reconstruction as module
from mvar_models.evaluation.image_sets import ArrayImages, SourceImages
from mvar_models.evaluation.reconstruction import (
    check_reconstruction,
    code_counts,
    codes_used,
    decoded_images,
    perplexity,
    psnr,
    reconstruct,
    sampled_images,
    side_by_side,
)
from mvar_models.images import to_uint8
from mvar_models.pipeline import Pipeline
from mvar_models.tokens.token_set import TokenSet

from tiny_models import tiny_mvar, tiny_vqvae


def test_psnr_by_its_definition(seed):
    """The range of values is 2, so an error of 0.2 everywhere is 20 dB."""
    originals = torch.rand(2, 3, 4, 4) - 0.5
    images = originals + torch.tensor([0.2, 0.02])[:, None, None, None]
    assert psnr(images, originals).tolist() == pytest.approx([20, 40], abs=1e-3)


def test_psnr_of_equal_images_is_finite():
    images = torch.zeros(1, 3, 4, 4)
    assert psnr(images, images).isfinite().all()


@torch.no_grad()
def test_reconstruct_compares_with_the_decoded_codes(seed, monkeypatch):
    """Also where the images are decoded a few at a time."""
    vqvae, images = tiny_vqvae(), torch.rand(5, 3, 16, 16) * 2 - 1
    decoded = vqvae.decode(vqvae.encode(images))
    for pixels in (8 * 256 * 256, 2 * 16 * 16):
        monkeypatch.setattr(module, "_PIXELS", pixels)
        found = reconstruct(vqvae, images)
        assert found.psnr == pytest.approx(psnr(decoded, images).mean().item(), abs=1e-2)


def test_originals_are_drawn_above_their_reconstructions():
    """At most eight columns of 4 px with gaps of 2 px: originals white, reconstructions black."""
    white = torch.ones(9, 3, 4, 4)
    drawn = np.array(side_by_side(white, -white))
    assert drawn.shape == (4 + 2 + 4, 8 * 6 - 2, 3)
    assert (drawn[:4] == 255).all()
    assert (drawn[6:, :4] == 0).all()


@pytest.mark.parametrize("form", ["set", "tensor"])
def test_images_below_15_db_stop_with_the_number_the_image_and_the_ways_on(tmp_path, seed, form):
    vqvae, digits, file = VQVAE.from_pretrained("vae-digits"), Digits(32), tmp_path / "new" / "drawn.png"
    noise = torch.rand(16, 3, 32, 32) * 2 - 1
    forms = {
        "set": (SourceImages(digits, digits.held_out, "digits", 32), ArrayImages(to_uint8(noise))),
        "tensor": (digits.images(np.arange(16)), noise),
    }
    good, bad = forms[form]
    assert check_reconstruction(vqvae, good, file, name="vae-digits").psnr > 30
    assert not file.exists()
    ways = r"--vqvae\) or train one .*train-vqvae --resolution.*--accept-psnr"
    with pytest.raises(ValueError, match=rf"^vae-digits .* with [5-9]\.\d dB PSNR.* {file}; .*{ways}"):
        check_reconstruction(vqvae, bad, file, name="vae-digits")
    assert Image.open(file).size == (8 * 34 - 2, 66)
    assert check_reconstruction(vqvae, bad, file, name="vae-digits", accept=True).psnr < 10


def test_a_dataset_without_a_readable_image_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"none of 1 images can be read; .*a\.png"):
        check_reconstruction(
            tiny_vqvae(), open_images(tmp_path / "data", 16), tmp_path / "drawn.png", name="vae"
        )
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    "side, decoded", [(16, [8, 8, 4]), (256, [8, 8, 4]), (324, [4] * 5), (512, [2] * 10)]
)
def test_images_are_decoded_at_most_eight_of_256_px_at_a_time(side, decoded):
    """Five images of 324 px have more pixels than eight of 256 px. The images drawn here are small."""
    batches = []

    class Recording:
        config = SimpleNamespace(resolution=side)
        device, dtype = torch.device("cpu"), torch.float32

        def encode(self, images):
            return images

        def decode(self, images):
            batches.append(len(images))
            return images

    reconstruct(Recording(), torch.zeros(20, 3, 4, 4))
    assert batches == decoded


def test_sixteen_images_spread_over_the_dataset_are_checked(tmp_path):
    asked = []

    class Source:
        def __len__(self):
            return 46

        def readable(self, indices):
            asked.extend(indices.tolist())
            return torch.zeros(len(indices), 3, 16, 16), np.arange(len(indices))

    check_reconstruction(tiny_vqvae(), Source(), tmp_path / "drawn.png", name="vae", accept=True)
    assert asked == list(range(0, 46, 3))


def test_counts_are_kept_by_scale():
    """Scales of 1 and 4 tokens, two images."""
    indices = torch.tensor([[2, 0, 0, 1, 2], [2, 0, 1, 1, 1]])
    assert code_counts(indices, (1, 2), 4).tolist() == [[0, 0, 2, 0], [3, 4, 1, 0]]


def test_used_is_the_share_of_codes_that_occur():
    assert codes_used(torch.tensor([[0.0, 0, 2, 0], [3, 4, 1, 0]])).tolist() == [0.25, 0.75]


def test_counts_may_have_any_number_of_leading_axes():
    counts = torch.tensor([[0.0, 0, 2, 0], [3, 4, 1, 0]])
    assert codes_used(counts[0]).item() == 0.25
    assert codes_used(counts[:, None]).tolist() == [[0.25], [0.75]]
    assert perplexity(counts[:, None]).shape == (2, 1)


def test_perplexity_is_the_number_of_equally_frequent_codes():
    counts = torch.tensor([[5.0, 5, 5, 5], [7, 0, 0, 0], [3, 3, 0, 0]])
    assert torch.allclose(perplexity(counts), torch.tensor([4.0, 1.0, 2.0]))


def test_perplexity_of_uneven_counts():
    """exp of the entropy of (1/2, 1/4, 1/4), which is 1.5 ln 2."""
    assert torch.allclose(perplexity(torch.tensor([2.0, 1, 1])), torch.tensor(2**1.5))


def test_an_image_depends_on_its_label_and_seed_alone():
    pipeline = Pipeline(tiny_mvar(), tiny_vqvae())
    images = sampled_images(pipeline, [2, 0, 1, 1], seed=5)
    assert len(images) == 4
    assert images.size == (16, 16)
    found, kept = images.read(np.array([3, 0]))
    assert kept.tolist() == [0, 1]
    assert np.array_equal(found, pipeline([1, 2], seed=[8, 5], output_type="np").images)
    assert np.array_equal(images.read(np.arange(4))[0][[3, 0]], found)
    assert not np.array_equal(*images.read(np.array([2, 3]))[0]), "equal labels have seeds of their own"
    others = [sampled_images(pipeline, [2, 0, 1, 1], seed=6), sampled_images(pipeline, [2, 0, 1, 2], seed=5)]
    assert len({each.digest for each in (images, *others)}) == 3
    assert images.read(np.empty(0, dtype=np.int64))[0].shape[0] == 0


def test_codes_are_decoded_as_their_images():
    codes = np.random.default_rng(0).integers(0, 24, (2, 12, 21), dtype=np.uint16)
    tokens = TokenSet(codes, np.arange(12) % 3)
    images = decoded_images(tiny_vqvae(), tokens, np.array([1, 4, 5, 6, 7, 8, 9, 10, 11]))
    assert images.labels.tolist() == [1, 1, 2, 0, 1, 2, 0, 1, 2]
    with torch.no_grad():
        expected = to_uint8(tiny_vqvae().decode(torch.from_numpy(codes[0].astype(np.int64))))
    found, kept = images.read(np.arange(9))
    assert np.array_equal(found, expected[[1, 4, 5, 6, 7, 8, 9, 10, 11]])
    assert kept.tolist() == list(range(9))
    assert images.read(np.empty(0, dtype=np.int64))[0].shape == (0, 16, 16, 3)
    assert images.digest != decoded_images(tiny_vqvae(), tokens, np.array([1, 4])).digest
