"""Images and masks of every usual kind come in alike, and others get one line that names the argument."""

import numpy as np
import pytest
import torch
from PIL import Image

from mvar_models.pipeline.inputs import images_of, masks_of

PIXELS = (np.arange(4 * 6 * 3).reshape(4, 6, 3) * 3).astype(np.uint8)
GREY = PIXELS[:, :, 0]
MASK = np.zeros((4, 6), dtype=bool)
MASK[1:3, 2:5] = True


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
        [Image.fromarray(PIXELS)],
        Image.fromarray(PIXELS).convert("RGBA"),
    ],
    ids=["pil", "array", "batch", "float", "tensor", "tensors", "uint8 tensor", "list", "opaque RGBA"],
)
def test_kinds_of_images_agree(image):
    (found,) = images_of(image)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected_image(), atol=1e-7)


@pytest.mark.parametrize("image", [Image.fromarray(GREY), GREY, GREY[:, :, None], torch.tensor(GREY)[None]])
def test_grey_images_get_three_channels(image):
    (found,) = images_of(image)
    assert torch.equal(found, (torch.from_numpy(GREY).float() / 255).expand(3, 4, 6))


def test_palettes_and_transparency():
    palette = Image.fromarray(PIXELS).quantize(8)
    assert torch.equal(images_of(palette)[0], images_of(palette.convert("RGB"))[0])
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
        (images_of, "cat.png", TypeError, r"image.*got str"),
        (images_of, [], ValueError, r"image.*empty"),
        (images_of, np.zeros((4, 6, 2)), ValueError, r"image.*\(B, H, W, 3\).*\(4, 6, 2\)"),
        (images_of, torch.zeros(4, 6), ValueError, r"image.*\(B, 3, H, W\).*\(4, 6\)"),
        (images_of, np.zeros((0, 6, 3)), ValueError, r"image.*pixels.*\(0, 6, 3\)"),
        (images_of, PIXELS.astype(float), ValueError, r"image.*\[0, 1\].*213"),
        (images_of, torch.full((3, 2, 2), float("nan")), ValueError, r"image.*\[0, 1\].*nan"),
        (images_of, PIXELS.astype(np.int64), ValueError, r"image.*uint8.*int64"),
        (images_of, Image.new("F", (2, 2)), ValueError, r"image.*8 bits.*mode F"),
        (masks_of, None, TypeError, r"mask_image.*got NoneType"),
        (masks_of, np.zeros((2, 3, 4, 4)), ValueError, r"mask_image.*\(2, 3, 4, 4\)"),
        (masks_of, np.full((2, 2), 300), ValueError, r"mask_image.*255.*300"),
        (masks_of, np.full((2, 2), -0.5), ValueError, r"mask_image.*\[0, 1\].*-0\.5"),
    ],
)
def test_what_does_not_fit_is_named(convert, value, error, match):
    with pytest.raises(error, match=match):
        convert(value)
