"""A folder of codes: what `mvar tokenize` writes and training reads by memory map.

index.json                what it is made of and holds; appears when all shards are there
shard-00000.safetensors   codes of examples 0 .. shard_size - 1 (see `token_shards`)
reconstruction.png        pictures above what the VQVAE gives back of them
settings.json             only while shards are missing
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mvar_models.config import read_config
from mvar_models.data.source import ImageSource, split
from mvar_models.networks.vqvae import VQVAE
from mvar_models.tokens.encode import TokenSet, token_fingerprint, vqvae_identity
from mvar_models.tokens.shard import ShardedCodes, file_hash, map_tensor

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


class TokenFolder(ImageSource):
    """A finished folder of codes as a dataset without pictures: labels, names, the split, and `token_sets`.

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
        super().__init__(self._all("labels"), self.index["class_names"], self.index["flips"])
        self.held_out = self._all("held_out").astype(bool)
        self.left_out = dict(self.index["left_out"])

    @property
    def fingerprint(self) -> str:
        return self.index["data_fingerprint"]

    @property
    def copies(self) -> int:
        return self.index["copies"]

    @property
    def bytes_per_picture(self) -> float:
        return sum(shard["bytes"] for shard in self.index["shards"]) / len(self)

    def name(self, index: int) -> str:
        return f"{self.folder} example {self._examples[index]}"

    def read(self, index: int) -> Tensor:
        raise ValueError(
            f"{self.folder} holds codes, not pictures; give --data the pictures that they were made of ({self.index['data']})"
        )

    def token_sets(self, vqvae: VQVAE) -> tuple[TokenSet, TokenSet]:
        """Codes of the training pictures, all copies, and of the held-out ones, mapped into memory.

        Raises:
            ValueError: the codes are another VQVAE's.
        """
        for key, value in vqvae_settings(vqvae).items():
            if self.index[key] != value:
                raise ValueError(
                    f"{self.folder} was made with another VQVAE ({self.index['vqvae']}: its {key} is {self.index[key]}, this one's {value}); "
                    "train with that one, or run `mvar tokenize` with this one into another folder"
                )
        train, val = split(self)
        return self._token_set(train), self._token_set(val)

    def _token_set(self, which: np.ndarray) -> TokenSet:
        index = self.index
        counts = [shard["pictures"] for shard in index["shards"]]
        codes = ShardedCodes(
            self.files, counts, (index["copies"], sum(side * side for side in index["sides"])), which
        )
        fingerprint = token_fingerprint(
            self.fingerprint, index["vqvae_identity"], index["copies"], index["seed"], self._examples[which]
        )
        return TokenSet(codes, self.labels[which], fingerprint)

    @cached_property
    def _examples(self) -> np.ndarray:
        return self._all("examples")

    def _all(self, name: str) -> np.ndarray:
        return np.concatenate([map_tensor(file, name) for file in self.files])
