"""The tile table: a pure function of architecture, head dimension and element size. No search at run time, no recompiles by length.

Rows were chosen by ahead-of-time compilation for seven targets with triton 3.7.1 (`python -m mvar_kernels.aot`): the largest tile that neither
spills nor exceeds shared memory anywhere. Speed on a GPU: not measured yet.
"""

from __future__ import annotations

from typing import NamedTuple

SHARED_BYTES = {"sm_80": 166_912, "sm_86": 101_376, "sm_89": 101_376, "sm_90": 232_448, "sm_100": 232_448, "sm_120": 101_376, "gfx942": 65_536}


class Config(NamedTuple):
    """Tiles of height x width fixed tokens against chunks of `chunk` looped ones."""

    height: int
    width: int
    chunk: int
    num_warps: int
    num_stages: int

    @property
    def size(self) -> int:
        return self.height * self.width


class Row(NamedTuple):
    """One table row: configurations of forward, dq, and dk, dv for head dimensions up to `max_dim` and elements of `bytes`."""

    max_dim: int
    bytes: int
    forward: Config
    dq: Config
    dkdv: Config


_8x8 = (8, 8)
_4x8 = (4, 8)

TABLE = (
    # 64 x 64 scores and 4 warps: one warpgroup's product on sm_90, and the sizes that the window rectangles were counted for.
    Row(64, 2, Config(*_8x8, 64, 4, 2), Config(*_8x8, 64, 4, 2), Config(*_8x8, 64, 4, 2)),
    # dk and dv together hold 2 x 64 x 128 float32: 8 warps, or registers spill.
    Row(128, 2, Config(*_8x8, 64, 4, 2), Config(*_8x8, 64, 8, 2), Config(*_8x8, 64, 8, 1)),
    # Shared memory of 99 KiB (sm_86, sm_89, sm_120) and of 64 KiB (gfx942) decides here.
    Row(256, 2, Config(*_8x8, 32, 8, 1), Config(*_8x8, 32, 8, 1), Config(*_4x8, 32, 8, 1)),
    Row(64, 4, Config(*_8x8, 32, 8, 1), Config(*_8x8, 32, 8, 1), Config(*_4x8, 32, 4, 1)),
    Row(128, 4, Config(*_4x8, 32, 4, 1), Config(*_4x8, 32, 8, 1), Config(*_4x8, 32, 8, 1)),
    Row(256, 4, Config(*_4x8, 16, 8, 1), Config(*_4x8, 16, 8, 1), Config(4, 4, 16, 8, 1)),
)


def tile_row(head_dim: int, element_bytes: int) -> Row:
    """The table's row for a head dimension (1 to 256) and an element size (2 or 4 bytes).

    The architecture has no say yet: every row fits all seven targets, and nothing was measured that would tell them apart.
    """
    for row in TABLE:
        if row.bytes == element_bytes and head_dim <= row.max_dim:
            return row
    raise ValueError(f"no tiles for head dimension {head_dim} with {element_bytes}-byte elements")
