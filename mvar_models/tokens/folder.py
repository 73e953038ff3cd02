"""A folder of codes: what `mvar tokenize` writes, and training reads by memory map.

index.json           what the codes are made of and where they are; appears when all shards are complete
examples.npy         number in the dataset, label and split of every image, in the order of the shards
shard-00000.npy      codes of examples 0 .. shard_size - 1, and its record (see `shard`)
reconstruction.png   some images above their reconstructions
settings.json        exists only while shards are missing
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from mvar_models.data.arrays import read_npy
from mvar_models.data.fingerprint import digest
from mvar_models.data.open import open_images
from mvar_models.data.source import ImageSource
from mvar_models.data.split import Split
from mvar_models.files import file_digest
from mvar_models.networks.vqvae import VQVAE
from mvar_models.records import FileName, read_record, within
from mvar_models.tokens.encode import token_fingerprint, vqvae_identity
from mvar_models.tokens.format_1 import FORMAT_1, SafetensorsCodes, read_examples
from mvar_models.tokens.shard import ShardedCodes
from mvar_models.tokens.token_set import TokenSet

INDEX, SETTINGS, EXAMPLES = "index.json", "settings.json", "examples.npy"
FORMAT = "mvar-tokens-2"
# One row of examples.npy.
EXAMPLE_TYPE = np.dtype([("example", "<i4"), ("label", "<i4"), ("held_out", "?")])


def is_token_folder(path: Path) -> bool:
    """Return whether a folder holds codes of any format, finished or not."""
    for name in (INDEX, SETTINGS):
        file = path / name
        if file.is_file():
            with file.open("rb") as opened:
                # Every format's name begins alike, and its entry comes first in the file.
                return f'"format": "{FORMAT[:-1]}'.encode() in opened.read(256)
    return False


def open_data(data: str | os.PathLike[str], resolution: int) -> ImageSource | TokenFolder:
    """Open a folder of codes, or anything that `open_images` takes."""
    path = Path(data)
    return TokenFolder(path) if is_token_folder(path) else open_images(data, resolution)


def refuse_tokens(data: str | os.PathLike[str]) -> None:
    """Raise ValueError if `data` is a folder of codes where images are needed."""
    path = Path(data)
    if is_token_folder(path):
        source = read_index(path).data if (path / INDEX).is_file() else None
        hint = f"; give the images that they were made of ({source})" if source else ""
        raise ValueError(f"{data} holds codes, not images{hint}")


@dataclass(frozen=True)
class IndexedFile:
    """A file that the index lists.

    Attributes:
        file: its name.
        sha256: of the file.
        bytes: its size.
        pictures: images with codes in it, if it is a shard.
        stamps, content: of the images of a shard, as in its record; "" in folders of earlier versions.
    """

    file: FileName
    sha256: str
    bytes: Annotated[int, within(0, 1 << 62)]
    pictures: Annotated[int, within(0, 1 << 31)] = 0
    stamps: str = ""
    content: str = ""


@dataclass(frozen=True)
class Index:
    """What index.json holds, under the names that version 0.1 gave it."""

    ignores_unknown: ClassVar[bool] = True

    format: Literal["mvar-tokens-2", "mvar-tokens-1"]
    sides: list[Annotated[int, within(1, 4096)]]
    vocab_size: Annotated[int, within(1, 1 << 16)]
    vqvae_identity: str
    data_fingerprint: str
    class_names: list[str]
    flips: bool
    copies: Annotated[int, within(1, 1 << 20)]
    seed: int
    shard_size: int
    data: str
    vqvae: str
    left_out: dict[str, str]
    shards: list[IndexedFile]
    examples: IndexedFile | None = None

    @property
    def num_images(self) -> int:
        """Images with codes."""
        return sum(shard.pictures for shard in self.shards)

    @property
    def files(self) -> list[IndexedFile]:
        """Every file; format 1 has shards alone."""
        return self.shards if self.examples is None else [*self.shards, self.examples]


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
        "vqvae_identity": vqvae_identity(vqvae),
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
        if self.index.format == FORMAT_1:
            self.examples = read_examples(self.files, "examples")
            labels = read_examples(self.files, "labels")
            self._reserved = read_examples(self.files, "held_out").astype(bool)
        else:
            stored = read_npy(folder / EXAMPLES, EXAMPLE_TYPE, (self.index.num_images,))
            self.examples, labels, self._reserved = stored["example"], stored["label"], stored["held_out"]
        self.labels = labels.astype(np.int64)
        self.class_names = tuple(self.index.class_names)
        if not len(labels) or labels.min() < 0 or labels.max() >= len(self.class_names):
            raise ValueError(f"{folder}: labels must be from 0 to {len(self.class_names) - 1}, one per image")
        self.mirror_safe = self.index.flips
        self.skipped = dict(self.index.left_out)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the images, with their content where the index has it."""
        contents = [shard.content for shard in self.index.shards]
        return (
            digest(self.index.data_fingerprint, *contents) if all(contents) else self.index.data_fingerprint
        )

    @property
    def num_variants(self) -> int:
        return self.index.copies

    @property
    def bytes_per_image(self) -> float:
        return sum(shard.bytes for shard in self.index.shards) / len(self)

    @cached_property
    def split(self) -> Split:
        """The split of the images that the codes were made of."""
        return Split.of_flags(self._reserved)

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
                f"{self.folder} holds {self.num_variants} variants per image, "
                f"copies asks for {num_variants}; "
                "tokenize again with --copies"
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
        counts = [shard.pictures for shard in index.shards]
        shape = self.num_variants, sum(side * side for side in index.sides)
        kind = SafetensorsCodes if index.format == FORMAT_1 else ShardedCodes
        fingerprint = token_fingerprint(
            self.fingerprint,
            index.vqvae_identity,
            self.num_variants,
            index.seed,
            self.examples[indices],
        )
        codes = kind(self.files, counts, shape, indices, index.vocab_size)
        return TokenSet(codes, self.labels[indices], fingerprint)
