"""What a row of the tile table says, and how much shared memory a GPU has."""

from __future__ import annotations

from typing import NamedTuple

SHARED_BYTES = {
    "sm_80": 166_912,
    "sm_86": 101_376,
    "sm_89": 101_376,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "sm_120": 101_376,
    "gfx942": 65_536,
}


class Config(NamedTuple):
    """Tiles of height x width fixed tokens against chunks of `chunk` looped ones, with warps and pipeline stages."""

    height: int
    width: int
    chunk: int
    num_warps: int
    num_stages: int

    @property
    def size(self) -> int:
        return self.height * self.width


class Row(NamedTuple):
    """Configurations of forward, dq, and dk and dv, for head dimensions up to `max_dim`; `family` is "cuda", "hip" or one architecture."""

    family: str
    bytes: int
    max_dim: int
    cosine: bool
    forward: Config
    dq: Config
    dkdv: Config
    why: str = ""


def family_of(architecture: str) -> str:
    """ "sm_90" -> "cuda", "gfx942" -> "hip"."""
    return "cuda" if architecture.startswith("sm_") else "hip"
