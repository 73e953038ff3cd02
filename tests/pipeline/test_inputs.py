"""Images and masks of every usual kind come in alike, and others get one line that names the argument."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mvar_models.images import decode, to_tensor
from mvar_models.pipeline.inputs import images_of, masks_of

from odd_images import GREY as GREY_HALVES
from odd_images import ODD, encoded

PIXELS = (np.arange(4 * 6 * 3).reshape(4, 6, 3) * 3).astype(np.uint8)
GREY = PIXELS[:, :, 0]
MASK = np.zeros((4, 6), dtype=bool)
MASK[1:3, 2:5] = True


def encoded_mask(mask):
    return encoded(Image.fromarray(mask))


def expected_image():
    return torch.from_numpy(PIXELS).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(PIXELS),
        PIXELS,
        PIXELS[None],
        PIXELS.astype(np.float64) / 255,
        expected_image(),
        expected_image()[None],
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        PIXELS.astype(np.uint16) * 257,
        (PIXELS.astype(np.uint16) * 257).astype(">u2"),
        torch.from_numpy(PIXELS.astype(np.uint16) * 257).permute(2, 0, 1),
        np.dstack([PIXELS, np.full_like(GREY, 255)]),
        torch.cat([expected_image(), torch.ones(1, 4, 6)]),
        [Image.fromarray(PIXELS)],
        Image.fromarray(PIXELS).convert("RGBA"),
    ],
)
def test_kinds_of_images_agree(image):
    (found,) = images_of(image)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected_image(), atol=1e-7)


def by_all_ways(content, path):
    """The same file as people hand it over."""
    path.write_bytes(content)
    opened = Image.open(path)
    return {"str": str(path), "path": path, "bytes": content, "opened": opened, "copied": opened.copy()}


@pytest.mark.parametrize("name", ODD)
def test_odd_images_are_the_same_from_a_file_and_from_pillow(name, tmp_path):
    """Turned, 16 bits deep, transparent: what the command line reads is what Python's caller gets."""
    content, expected = ODD[name]
    ways = by_all_ways(content, tmp_path / name)
    (truth,) = images_of(ways["path"])
    assert torch.allclose(truth, (to_tensor(decode(content)) + 1) / 2, atol=1e-6)
    assert truth[:, :, [1, -2]].mean((0, 1)).mul(255).tolist() == pytest.approx(expected, abs=8)
    for way, image in ways.items():
        assert torch.equal(images_of(image)[0], truth), way


@pytest.mark.parametrize("name", ["turned.jpg", "sixteen_bit.png", "palette_transparency.png", "cmyk.jpg"])
def test_odd_masks_are_the_same_from_a_file_and_from_pillow(name, tmp_path):
    content, _ = ODD[name]
    for way, mask in by_all_ways(content, tmp_path / name).items():
        (found,) = masks_of(mask)
        assert torch.equal(found, torch.from_numpy(GREY_HALVES > 100)), way


def veiled(opaque, clear, alpha=0):
    """A mask whose middle columns have an alpha of their own; `opaque` is left and right of it."""
    values, opacity = np.full((4, 6), clear, np.uint8), np.full((4, 6), 255, np.uint8)
    values[:, :2], values[:, 4:], opacity[:, 2:4] = *np.broadcast_to(opaque, 2), alpha
    return np.dstack([values] * 3 + [opacity])


@pytest.mark.parametrize("alpha", [0, 90])
@pytest.mark.parametrize("hidden", [0, 255])
@pytest.mark.parametrize("opaque", [0, 255])
@pytest.mark.parametrize("as_given", [Image.fromarray, np.asarray, lambda mask: mask / 255, encoded_mask])
def test_a_transparent_part_of_a_mask_is_the_opposite_of_the_rest(as_given, opaque, hidden, alpha):
    """What colour the transparent part has underneath is not seen, so it does not decide."""
    (found,) = masks_of(as_given(veiled(opaque, hidden, alpha)))
    hole = torch.zeros(4, 6, dtype=torch.bool)
    hole[:, 2:4] = True
    assert torch.equal(found, ~hole if opaque else hole)


def test_transparency_that_hides_nothing_does_not_matter():
    mask = np.dstack([MASK * np.uint8(255)] * 3 + [np.full(MASK.shape, 255, np.uint8)])
    assert torch.equal(masks_of(Image.fromarray(mask))[0], torch.from_numpy(MASK))


@pytest.mark.parametrize("colour", ["red", "lime", "blue", "yellow", "white"])
def test_a_coloured_mask_is_the_same_from_an_array_and_from_pillow(colour):
    mask = Image.new("RGB", (3, 2), colour)
    assert torch.equal(masks_of(np.asarray(mask))[0], masks_of(mask)[0])


@pytest.mark.parametrize("image", [Image.fromarray(GREY), GREY, GREY[:, :, None], torch.tensor(GREY)[None]])
def test_grey_images_get_three_channels(image):
    (found,) = images_of(image)
    assert torch.equal(found, (torch.from_numpy(GREY).float() / 255).expand(3, 4, 6))


def test_palettes_and_transparency():
    palette = Image.fromarray(PIXELS).quantize(8)
    assert torch.equal(images_of(palette)[0], images_of(palette.convert("RGB"))[0])
    halves = np.array([[False, True]])
    assert images_of(halves)[0].tolist() == [[[0, 1]]] * 3, "bool is black and white"
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((1, 0), (255, 0, 0, 255))
    assert images_of(clear)[0].permute(1, 2, 0).tolist() == [[[1, 1, 1], [1, 0, 0]]], "clear is white"


def test_a_list_may_mix_kinds_and_sizes():
    found = images_of([Image.new("L", (3, 5)), PIXELS, torch.zeros(2, 3, 7, 8)])
    assert [tuple(each.shape) for each in found] == [(3, 5, 3), (3, 4, 6), (3, 7, 8), (3, 7, 8)]


@pytest.mark.parametrize(
    "mask",
    [
        MASK,
        MASK[None],
        MASK.astype(np.uint8),
        MASK.astype(np.uint8) * 255,
        MASK.astype(np.int64),
        MASK.astype(np.uint16) * 65535,
        MASK.astype(np.uint16) * 255,
        MASK * 0.5,
        np.repeat(MASK[:, :, None], 3, 2) * 1.0,
        torch.from_numpy(MASK),
        torch.from_numpy(MASK)[None, None],
        Image.fromarray(MASK),
        Image.fromarray(MASK.astype(np.uint8) * 255),
        Image.fromarray(MASK.astype(np.uint8) * 128).convert("RGB"),
    ],
)
def test_kinds_of_masks_agree(mask):
    (found,) = masks_of(mask)
    assert torch.equal(found, torch.from_numpy(MASK))


@pytest.mark.parametrize(
    "convert, value, error, match",
    [
        (images_of, 5, TypeError, r"image.*path.*got int"),
        (images_of, "cat.png", ValueError, r"^cat.png cannot be opened"),
        (masks_of, [Path("none") / "mask.png"], ValueError, r"^none.mask.png cannot be opened"),
        (images_of, b"", ValueError, r"^image is empty"),
        (images_of, [], ValueError, r"image.*empty"),
        (images_of, np.zeros((4, 6, 2)), ValueError, r"image.*\(B, H, W, 3\).*\(4, 6, 2\)"),
        (images_of, torch.zeros(4, 6), ValueError, r"image.*\(B, 3, H, W\).*\(4, 6\)"),
        (images_of, np.zeros((0, 6, 3)), ValueError, r"image.*pixels.*\(0, 6, 3\)"),
        (images_of, PIXELS.astype(float), ValueError, r"image.*\[0, 1\].*213"),
        (images_of, torch.full((3, 2, 2), float("nan")), ValueError, r"image.*\[0, 1\].*nan"),
        (images_of, PIXELS.astype(np.int64), ValueError, r"image.*uint8.*int64"),
        (images_of, Image.new("F", (2, 2)), ValueError, r"image.*32 bits.*8 or 16"),
        (masks_of, Image.new("I", (2, 2)), ValueError, r"mask_image.*32 bits.*8 or 16"),
        (images_of, encoded(Image.effect_noise((24, 24), 50))[:300], ValueError, r"image cannot be decoded"),
        (masks_of, veiled((0, 255), 0), ValueError, r"mask_image must be opaque"),
        (masks_of, Image.new("RGBA", (2, 2)), ValueError, r"mask_image must be opaque"),
        (masks_of, None, TypeError, r"mask_image.*got NoneType"),
        (masks_of, np.zeros((2, 3, 4, 4)), ValueError, r"mask_image.*\(2, 3, 4, 4\)"),
        (masks_of, np.full((2, 2), 300), ValueError, r"mask_image.*255.*300"),
        (masks_of, np.full((2, 2), -0.5), ValueError, r"mask_image.*\[0, 1\].*-0\.5"),
    ],
)
def test_what_does_not_fit_is_named(convert, value, error, match):
    with pytest.raises(error, match=match):
        convert(value)
