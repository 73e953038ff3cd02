"""Images of strangers to tensors of one size, and augmentation."""

import numpy as np
import pytest
import torch
from PIL import Image

from mvar_models.data.transforms import MAX_SHIFT, affine, center_crop, load_image, random_affine
from mvar_models.images import UnreadableImage, decode, to_pil

from odd_images import BROKEN, ODD, encoded


@pytest.mark.parametrize("name", ODD)
def test_odd_images_work(name, tmp_path):
    """The grey levels left and right of the middle are the stored ones: no clipping, inversion or turn."""
    content, expected = ODD[name]
    (tmp_path / name).write_bytes(content)
    for source in (content, tmp_path / name):
        image = (load_image(source, 12) + 1) * 127.5
        assert image.shape == (3, 12, 12)
        found = image[:, :, 1].mean().item(), image[:, :, -2].mean().item()
        assert found == pytest.approx(expected, abs=8)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_images_say_why(name, tmp_path):
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableImage) as found:
        load_image(tmp_path / name, 12)
    assert str(found.value).startswith(message)
    assert "\n" not in str(found.value)


def test_empty_and_missing_files(tmp_path):
    with pytest.raises(UnreadableImage, match=r"is empty \(0 bytes\)"):
        load_image(b"", 12)
    with pytest.raises(UnreadableImage, match="cannot be opened: No such file"):
        load_image(tmp_path / "gone.png", 12)


@pytest.mark.parametrize("size", [(64, 64), (33, 50), (200, 70), (16, 17), (5, 3)])
def test_center_crop_keeps_the_middle(size):
    image = Image.new("RGB", size, "black")
    image.paste("white", (size[0] // 2 - size[0] // 8, 0, size[0] // 2 + max(size[0] // 8, 1), size[1]))
    columns = np.array(center_crop(image, 16)).astype(float).mean((0, 2))
    assert columns.shape == (16,)
    assert columns[7:9].min() > 150, "the middle of the image should stay in the middle"


def test_images_and_tensors_are_inverse(seed):
    images = np.random.default_rng(seed).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    tensors = torch.stack([load_image(encoded(Image.fromarray(image)), 8) for image in images])
    back = to_pil(tensors)
    assert len(back) == len(images)
    assert all(np.array_equal(np.array(found), image) for found, image in zip(back, images))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_large_transparent_images_are_laid_on_white_in_parts(mode, monkeypatch):
    """The same pixels as at once, for any number of rows that does not divide the height."""
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (23, 40, 4), dtype=np.uint8), "RGBA").convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    data = encoded(image)
    whole = np.asarray(decode(data))
    monkeypatch.setattr("mvar_models.images._LARGE", 170)
    assert np.array_equal(np.asarray(decode(data)), whole)
    assert whole.shape == (23, 40, 3) and len(np.unique(whole)) > 50


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
