"""A folder of codes: what `mvar tokenize` writes, and training maps into memory.

index.json           the settings, and the records of all shards; appears when all are complete
examples.npy         number in the dataset, label and split of every image, in the order of the shards
shard-00000.npy      codes (num_variants, n, L) uint16 of the readable ones among shard_size examples
shard-00000.json     its record, with its SHA-256
reconstruction.png   some images above their reconstructions
settings.json        the settings, only while shards are missing

A shard's record is written last, and the shard counts if its bytes have the recorded checksum; so shards
left by a killed process need no other proof.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from mvar_models.data.arrays import read_npy
from mvar_models.data.open import open_images
from mvar_models.data.source import ImageSource, Split
from mvar_models.files import digest, file_digest, replacing, write_text
from mvar_models.networks.vqvae import VQVAE
from mvar_models.pipeline.identity import network_identity
from mvar_models.records import FileName, read_record, within
from mvar_models.tokens.encode import token_fingerprint
from mvar_models.tokens.token_set import ShardedCodes, TokenSet

INDEX, SETTINGS, EXAMPLES = "index.json", "settings.json", "examples.npy"
FORMAT = "mvar-tokens-3"
# One row of examples.npy.
EXAMPLE_TYPE = np.dtype([("example", "<i4"), ("label", "<i4"), ("held_out", "?")])


def is_token_folder(path: Path) -> bool:
    """Return whether a folder holds codes, finished or not."""
    for name in (INDEX, SETTINGS):
        file = path / name
        if file.is_file():
            with file.open("rb") as opened:
                # Every version's format begins alike, and its entry comes first in the file.
                return f'"format": "{FORMAT[:-1]}'.encode() in opened.read(256)
    return False


def open_data(data: str | os.PathLike[str]) -> ImageSource | TokenFolder:
    """Open a folder of codes, or anything that `open_images` takes, whose resolution is left to `at`."""
    path = Path(data)
    return TokenFolder(path) if is_token_folder(path) else open_images(data)


def refuse_tokens(data: str | os.PathLike[str]) -> None:
    """Raise ValueError if `data` is a folder of codes where images are needed."""
    path = Path(data)
    if is_token_folder(path):
        source = read_index(path).data if (path / INDEX).is_file() else None
        hint = f"; give the images that they were made of ({source})" if source else ""
        raise ValueError(f"{data} holds codes, not images{hint}")


@dataclass(frozen=True)
class StoredFile:
    """A file of a folder of codes: its name, the SHA-256 of its content, and its size."""

    file: FileName
    sha256: str
    bytes: Annotated[int, within(0, 1 << 62)]


@dataclass(frozen=True)
class Unreadable:
    """An example without codes: its number in the dataset, its name there, and why it cannot be read."""

    example: int
    name: str
    reason: str


@dataclass(frozen=True)
class Shard(StoredFile):
    """The record of a shard.

    Attributes:
        num_images: examples with codes.
        unreadable: the other examples of its range.
        stamps: digest of the stamps of all images of its range; "" for images that cannot change.
        content: digest of their bytes; "" for images that cannot change.
    """

    num_images: Annotated[int, within(0, 1 << 31)]
    unreadable: tuple[Unreadable, ...] = ()
    stamps: str = ""
    content: str = ""


@dataclass(frozen=True)
class Index:
    """The content of index.json.

    Attributes:
        data, vqvae: names of the dataset and of the VQVAE, for people to read.
        skipped: name -> reason of files that opening the dataset found unusable.
    """

    ignores_unknown: ClassVar[bool] = True

    format: Literal["mvar-tokens-3"]
    sides: list[Annotated[int, within(1, 4096)]]
    vocab_size: Annotated[int, within(1, 1 << 16)]
    vqvae_identity: str
    data_fingerprint: str
    class_names: list[str]
    mirror_safe: bool
    num_variants: Annotated[int, within(1, 1 << 20)]
    seed: int
    shard_size: int
    data: str
    vqvae: str
    skipped: dict[str, str]
    examples: StoredFile
    shards: list[Shard]

    @property
    def files(self) -> list[StoredFile]:
        """Every file that `mvar tokenize --verify` reads."""
        return [*self.shards, self.examples]


def read_index(folder: Path) -> Index:
    """Read the index of a finished folder.

    Raises:
        ValueError: the folder is not finished, or of a format that this version does not know.
    """
    if not (folder / INDEX).is_file():
        raise ValueError(
            f"{folder} is not complete; run the `mvar tokenize` command that began it again, it continues"
        )
    return read_record(folder / INDEX, Index)


def vqvae_settings(vqvae: VQVAE) -> dict[str, Any]:
    """Return the entries of the index that say which VQVAE the codes belong to."""
    config = vqvae.config
    return {
        "sides": list(config.sides),
        "vocab_size": config.vocab_size,
        "vqvae_identity": network_identity(vqvae),
    }


def verify_tokens(folder: Path) -> int:
    """Compare every file of codes with its SHA-256 in the index, and return the number of shards.

    Raises:
        ValueError: some differ; the message names them.
    """
    index = TokenFolder(folder).index
    wrong = [entry.file for entry in index.files if file_digest(folder / entry.file) != entry.sha256]
    if wrong:
        raise ValueError(
            f"{folder}: {len(wrong)} of {len(index.files)} files are damaged ({', '.join(wrong[:5])}); "
            f"remove them and {INDEX}, and run `mvar tokenize` again to recompute them"
        )
    return len(index.shards)


def write_array(path: Path, array: np.ndarray) -> StoredFile:
    """Write an .npy file that appears complete or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    # Not np.save to the file itself: on a full disk it only says how many values it could not write.
    content = buffer.getvalue()
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return StoredFile(path.name, hashlib.sha256(content).hexdigest(), len(content))


def write_shard(
    path: Path, codes: np.ndarray, unreadable: Sequence[Unreadable], stamps: str = "", content: str = ""
) -> None:
    """Write a shard and its record; the same arguments give the same bytes.

    Args:
        path: the .npy file.
        codes: (num_variants, n, L).
        unreadable, stamps, content: see `Shard`.
    """
    stored = write_array(path, np.ascontiguousarray(codes, dtype="<u2"))
    shard = Shard(**asdict(stored), num_images=codes.shape[1], unreadable=tuple(unreadable), stamps=stamps,
                  content=content)  # fmt: skip
    write_text(path.with_suffix(".json"), json.dumps(asdict(shard), indent=2) + "\n")


def is_written(path: Path) -> bool:
    """Return whether a shard has its record; whether it is intact takes `check_shard` to tell."""
    return path.with_suffix(".json").is_file()


def check_shard(path: Path) -> Shard:
    """Read a shard through, compare it with its record and return that.

    Raises:
        ValueError: it is not what was written.
    """
    try:
        shard = read_record(path.with_suffix(".json"), Shard)
        actual = file_digest(path)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{path} is not a complete shard of codes ({error})") from None
    if actual != shard.sha256:
        raise ValueError(f"{path} is damaged: its SHA-256 is not the recorded one")
    return shard


class TokenFolder:
    """A finished folder of codes: labels, class names, the split, and `token_sets`.

    Attributes:
        folder: where it is.
        index: index.json.
        files: the shards.
        examples: (N,) numbers of the images in the dataset.
        labels: (N,) int64.
        class_names: one name per label.
        mirror_safe: whether a mirrored image still belongs to its class.
        split: which images are for training and which are held out, as the dataset says.
        skipped: name -> reason of images that have no codes.

    Raises:
        ValueError: the folder is not complete, or a file is missing or of another size than the index says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = read_index(folder)
        self.files = [folder / shard.file for shard in self.index.shards]
        # Sizes only: reading every byte would delay each start by minutes; `verify_tokens` does.
        for entry in self.index.files:
            file = folder / entry.file
            size = file.stat().st_size if file.is_file() else None
            if size != entry.bytes:
                state = "is missing" if size is None else f"has {size} bytes instead of {entry.bytes}"
                raise ValueError(
                    f"{file} {state}; remove {folder / INDEX} and run `mvar tokenize` again to recompute it"
                )
        self._counts = [shard.num_images for shard in self.index.shards]
        stored = read_npy(folder / EXAMPLES, EXAMPLE_TYPE, (sum(self._counts),))
        self.examples, self.labels = stored["example"], stored["label"].astype(np.int64)
        self._held_out = stored["held_out"]
        self.class_names = tuple(self.index.class_names)
        if not len(stored) or self.labels.min() < 0 or self.labels.max() >= len(self.class_names):
            raise ValueError(f"{folder}: labels must be from 0 to {len(self.class_names) - 1}, one per image")
        self.mirror_safe = self.index.mirror_safe
        unreadable = (entry for shard in self.index.shards for entry in shard.unreadable)
        self.skipped = {**self.index.skipped, **{entry.name: entry.reason for entry in unreadable}}

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the images, with their content where it can change."""
        contents = [shard.content for shard in self.index.shards]
        data = self.index.data_fingerprint
        return digest(data, *contents) if all(contents) else data

    @property
    def num_variants(self) -> int:
        return self.index.num_variants

    @property
    def bytes_per_image(self) -> float:
        return sum(shard.bytes for shard in self.index.shards) / len(self)

    @cached_property
    def split(self) -> Split:
        return Split.of_flags(self._held_out)

    @property
    def train(self) -> np.ndarray:
        """Indices of the training examples."""
        return self.split.train

    @property
    def held_out(self) -> np.ndarray:
        """Indices of the validation examples; of a dataset too small to spare any, the training examples."""
        return self.split.held_out

    def token_sets(self, vqvae: VQVAE, num_variants: int | None = None) -> tuple[TokenSet, TokenSet]:
        """Return the codes of the training and of the held-out images in all variants, mapped into memory.

        Args:
            vqvae: the one whose codes they must be.
            num_variants: how many variants are needed; all that exist are used.

        Raises:
            ValueError: the codes are another VQVAE's, or there are fewer variants.
        """
        if num_variants is not None and num_variants > self.num_variants:
            raise ValueError(
                f"{self.folder} holds {self.num_variants} variants per image, copies asks for "
                f"{num_variants}; tokenize again with --copies"
            )
        for key, value in vqvae_settings(vqvae).items():
            if getattr(self.index, key) != value:
                raise ValueError(
                    f"{self.folder} was made with another VQVAE ({self.index.vqvae}: "
                    f"its {key} is {getattr(self.index, key)}, this one's {value}); "
                    "train with that one, or run `mvar tokenize` with this one into another folder"
                )
        return self._token_set(self.train), self._token_set(self.held_out)

    def _token_set(self, indices: np.ndarray) -> TokenSet:
        index = self.index
        shape = self.num_variants, sum(side * side for side in index.sides)
        codes = ShardedCodes(self.files, self._counts, shape, indices, index.vocab_size)
        fingerprint = token_fingerprint(
            self.fingerprint, index.vqvae_identity, self.num_variants, index.seed, self.examples[indices]
        )
        return TokenSet(codes, self.labels[indices], fingerprint)
