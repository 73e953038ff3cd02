"""Types of the tile table's rows, and the shared memory of each architecture."""

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
    """How one kernel is launched.

    Attributes:
        height: rows of a tile of fixed tokens.
        width: columns of a tile of fixed tokens.
        chunk: looped tokens per chunk.
        num_warps: warps per program.
        num_stages: stages of the software pipeline.
    """

    height: int
    width: int
    chunk: int
    num_warps: int
    num_stages: int

    @property
    def size(self) -> int:
        return self.height * self.width


class Row(NamedTuple):
    """Configurations of the three kernels for a range of inputs.

    Attributes:
        family: "cuda", "hip", or one architecture such as "sm_90".
        bytes: per element of query, key and value.
        max_dim: largest head dimension served.
        cosine: whether for cosine attention.
        forward: of the forward kernel.
        dq: of the kernel for dq.
        dkdv: of the kernel for dk and dv.
        why: the reason for these numbers.
    """

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
