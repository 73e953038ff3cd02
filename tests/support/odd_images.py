"""Images as strangers' folders hold them: odd ones that must work, broken ones that must be named."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageColor

SIDE = 24
# Left half dark, right half light, so that turning, scaling and blending show.
GREY = np.repeat(np.where(np.arange(SIDE) < SIDE // 2, 60, 200)[None], SIDE, 0).astype(np.uint8)


def encoded(image, kind="png", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _rgb():
    return Image.fromarray(GREY).convert("RGB")


def _turned():
    """Stored lying on its side, with the note (EXIF orientation 6) that it has to be turned by 90 degrees
    clockwise.
    """
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(_rgb().transpose(Image.Transpose.ROTATE_90), "jpeg", quality=95, exif=exif)


def _transparent(mode):
    image = Image.fromarray(np.dstack([GREY, GREY, GREY, np.where(GREY < 100, 0, 255).astype(np.uint8)]))
    return image.convert(mode)


def _palette_with_transparency():
    image = Image.fromarray((GREY > 100).astype(np.uint8))
    image.putpalette([60, 60, 60, 200, 200, 200])
    return encoded(image.convert("P"), transparency=0)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _sixteen_bit_with_transparent_value(channels):
    """The dark half has the transparent value, whose two bytes differ."""
    dark, light = 0x3C10, 0xC8C8
    pixels = np.repeat(np.where(GREY < 100, dark, light)[..., None], channels, 2).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    clear = chunk(b"tRNS", struct.pack(">H", dark) * channels)
    body = chunk(b"IHDR", header) + clear + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


# name -> (bytes, grey levels expected left and right); transparent parts show white.
ODD = {
    "plain.png": (encoded(_rgb()), (60, 200)),
    "grey.png": (encoded(Image.fromarray(GREY)), (60, 200)),
    "one_bit.png": (encoded(Image.fromarray(GREY).point(lambda v: 255 * (v > 100)).convert("1")), (0, 255)),
    "rgba.png": (encoded(_transparent("RGBA")), (255, 200)),
    "grey_alpha.png": (encoded(_transparent("LA")), (255, 200)),
    "palette_transparency.png": (_palette_with_transparency(), (255, 200)),
    "cmyk.jpg": (encoded(_rgb().convert("CMYK"), "jpeg", quality=95), (60, 200)),
    "turned.jpg": (_turned(), (60, 200)),
    "sixteen_bit.png": (encoded(Image.fromarray(GREY.astype(np.uint16) * 257)), (60, 200)),
    "sixteen_bit.tif": (encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "tiff"), (60, 200)),
    "sixteen_bit_transparent.png": (_sixteen_bit_with_transparent_value(1), (255, 200)),
    "sixteen_bit_transparent_rgb.png": (_sixteen_bit_with_transparent_value(3), (255, 200)),
    "animation.gif": (
        encoded(_rgb(), "gif", save_all=True, append_images=[Image.new("RGB", (SIDE, SIDE), "red")]),
        (60, 200),
    ),
    "UPPER.JPEG": (encoded(_rgb(), "jpeg", quality=95), (60, 200)),
    "bad_exif.jpg": (encoded(_rgb(), "jpeg", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), (60, 200)),
}


def _bomb():
    """A few bytes that say they are 60,000 x 60,000 pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


_NOISE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)

# name -> (bytes, what the message says of it).
BROKEN = {
    "truncated.jpg": (
        encoded(Image.fromarray(_NOISE), "jpeg", quality=95)[:700],
        "cannot be decoded: image file is truncated",
    ),
    "truncated.png": (encoded(Image.fromarray(_NOISE))[:900], "cannot be decoded: "),
    "words.jpg": (
        b"these are not the pixels you are looking for",
        "is not an image in a format that Pillow reads",
    ),
    "page.png": (b"<!DOCTYPE html><html><body>404</body></html>", "is a web page"),
    "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
    "bomb.png": (_bomb(), "claims more than 178,956,970 pixels"),
    "strip.png": (encoded(Image.new("RGB", (600, 2))), "is 600 x 2 pixels, a strip"),
    "float.tif": (encoded(Image.fromarray(GREY.astype(np.float32)), "tiff"), "has 32 bits per pixel"),
}
EMPTY = "empty.jpg"


def fill(folder, classes=("odd", "plain")):
    """A folder of class folders: every odd and broken image in the first class, eight plain ones in the
    second; returns it.
    """
    for name in classes:
        (folder / name).mkdir(parents=True)
    for name, (content, _) in {**ODD, **BROKEN, EMPTY: (b"", "")}.items():
        (folder / classes[0] / name).write_bytes(content)
    for index in range(8):
        image = Image.fromarray(np.roll(GREY, index, axis=1)).convert("RGB")
        image.save(folder / classes[1] / f"{index}.png")
    return folder


def plain_folder(folder, classes=("blue", "red"), count=3):
    """A folder of class folders with `count` images each, in the colour that the class is named after."""
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            colour = ImageColor.colormap.get(name, "grey")
            Image.new("RGB", (20 + index, 16), colour).save(folder / name / f"{index}.png")
    return folder
