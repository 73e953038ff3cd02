"""A folder of codes: what `mvar tokenize` writes and training reads by memory map.

index.json                what it is made of and holds; appears when all shards are there
shard-00000.safetensors   codes of examples 0 .. shard_size - 1 (see `token_shards`)
reconstruction.png        pictures above what the VQVAE gives back of them
settings.json             only while shards are missing
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mvar_models.config import read_config
from mvar_models.data.open import open_images
from mvar_models.data.source import ImageSource
from mvar_models.data.split import Split
from mvar_models.networks.vqvae import VQVAE
from mvar_models.tokens.encode import token_fingerprint, vqvae_identity
from mvar_models.tokens.shard import ShardedCodes, file_hash, map_tensor
from mvar_models.tokens.token_set import TokenSet

INDEX, SETTINGS = "index.json", "settings.json"
FORMAT = "mvar-tokens-1"


def is_token_folder(path: Path) -> bool:
    """Whether a `TokenWriter` made or began it."""
    for name in (INDEX, SETTINGS):
        file = path / name
        if file.is_file():
            with file.open("rb") as opened:
                return f'"format": "{FORMAT[:-1]}'.encode() in opened.read(256)
    return False


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a finished folder; ValueError where it is not finished or not of this format."""
    if not (folder / INDEX).is_file():
        raise ValueError(
            f"{folder} is not complete; run the `mvar tokenize` command that began it again, it goes on where it stopped"
        )
    index = read_config(folder / INDEX)
    if index.get("format") != FORMAT:
        raise ValueError(f"{folder / INDEX} is of format {index.get('format')}, this version reads {FORMAT}")
    return index


def vqvae_settings(vqvae: VQVAE) -> dict[str, Any]:
    """What the index says of the VQVAE whose codes a folder holds."""
    config = vqvae.config
    return {
        "sides": list(config.sides),
        "vocab_size": config.vocab_size,
        "vqvae_identity": vqvae_identity(vqvae),
    }


def verify_tokens(folder: Path) -> int:
    """Compare every shard with its SHA-256 in the index; the number of shards, or ValueError naming those that differ."""
    shards = TokenFolder(folder).index["shards"]
    wrong = [shard["file"] for shard in shards if file_hash(folder / shard["file"]) != shard["sha256"]]
    if wrong:
        raise ValueError(
            f"{folder}: {len(wrong)} of {len(shards)} shards are damaged ({', '.join(wrong[:5])}); "
            f"remove them and {INDEX}, and run `mvar tokenize` again to make them anew"
        )
    return len(shards)


def open_data(data: str | os.PathLike[str], resolution: int) -> ImageSource | TokenFolder:
    """Open a folder of codes, or anything that `open_images` takes."""
    path = Path(data)
    return TokenFolder(path) if is_token_folder(path) else open_images(data, resolution)


def refuse_tokens(data: str | os.PathLike[str]) -> None:
    """Raise ValueError if `data` is a folder of codes where images are needed."""
    path = Path(data)
    if is_token_folder(path):
        source = read_index(path)["data"] if (path / INDEX).is_file() else ""
        hint = f"; give the images that they were made of ({source})" if source else ""
        raise ValueError(f"{data} holds codes, not images{hint}")


class TokenFolder:
    """A finished folder of codes: labels, class names, the split, and `token_sets`.

    Attributes:
        index: contents of index.json.
        files: the shards.
        labels: (N,) int64.
        class_names: one name per label.
        mirror_safe: whether a mirrored image still belongs to its class.
        skipped: name -> reason of images that have no codes.

    Raises:
        ValueError: the folder is not complete, or a shard is missing or of another size than the index says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = read_index(folder)
        self.files = [folder / shard["file"] for shard in self.index["shards"]]
        for file, shard in zip(self.files, self.index["shards"]):
            size = file.stat().st_size if file.is_file() else None
            if size != shard["bytes"]:
                state = "is missing" if size is None else f"has {size} bytes instead of {shard['bytes']}"
                raise ValueError(
                    f"{file} {state}; remove {folder / INDEX} and run `mvar tokenize` again to make it anew"
                )
        self.labels = self._all("labels").astype(np.int64)
        self.class_names: tuple[str, ...] = tuple(self.index["class_names"])
        self.mirror_safe: bool = self.index["flips"]
        self.skipped: dict[str, str] = dict(self.index["left_out"])

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        """That of the images."""
        return str(self.index["data_fingerprint"])

    @property
    def num_variants(self) -> int:
        return int(self.index["copies"])

    @property
    def bytes_per_image(self) -> float:
        return sum(shard["bytes"] for shard in self.index["shards"]) / len(self)

    @cached_property
    def split(self) -> Split:
        """The split of the images that the codes were made of."""
        return Split.of_flags(self._all("held_out").astype(bool))

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
            num_variants: how many variants are needed; all there are are used.

        Raises:
            ValueError: the codes are another VQVAE's, or there are fewer variants.
        """
        if num_variants is not None and num_variants > self.num_variants:
            raise ValueError(
                f"{self.folder} holds {self.num_variants} variants per image, copies asks for {num_variants}; "
                "tokenize again with --copies"
            )
        for key, value in vqvae_settings(vqvae).items():
            if self.index[key] != value:
                raise ValueError(
                    f"{self.folder} was made with another VQVAE ({self.index['vqvae']}: its {key} is {self.index[key]}, this one's {value}); "
                    "train with that one, or run `mvar tokenize` with this one into another folder"
                )
        return self._token_set(self.train), self._token_set(self.held_out)

    def _token_set(self, indices: np.ndarray) -> TokenSet:
        index = self.index
        counts = [shard["pictures"] for shard in index["shards"]]
        codes = ShardedCodes(
            self.files, counts, (index["copies"], sum(side * side for side in index["sides"])), indices
        )
        fingerprint = token_fingerprint(
            self.fingerprint, index["vqvae_identity"], index["copies"], index["seed"], self._examples[indices]
        )
        return TokenSet(codes, self.labels[indices], fingerprint)

    @cached_property
    def _examples(self) -> np.ndarray:
        return self._all("examples")

    def _all(self, name: str) -> np.ndarray:
        return np.concatenate([map_tensor(file, name) for file in self.files])
