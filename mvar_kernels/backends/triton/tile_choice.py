"""Tile configurations: a pure function of architecture, head dimension, element size and kind of logits.

Nothing is searched at run time and nothing recompiles by length. The rows stand in `tile_table.py`, which a search rewrites. Rows of `cuda` serve
sm_80 to sm_120, so 99 KiB of shared memory (sm_86, sm_89, sm_120) and the registers of sm_80 and sm_90 bound them; rows of `hip` serve gfx942:
64 KiB and 512 registers a lane, which is why 4 warps do there what takes 8 on cuda. A row of one architecture ("sm_90") goes before its family's.
"""

from __future__ import annotations

import functools

import torch

from mvar_kernels.backends.triton import tile_table
from mvar_kernels.backends.triton.tile_config import Row, family_of


def rows_for(architecture: str) -> tuple[Row, ...]:
    """The rows that serve an architecture, the one that wins first."""
    names = (architecture, family_of(architecture))
    return tuple(
        sorted(
            (row for row in tile_table.ROWS if row.family in names),
            key=lambda row: (names.index(row.family), row.max_dim),
        )
    )


@functools.lru_cache
def tile_row(architecture: str, head_dim: int, element_bytes: int, cosine: bool) -> Row:
    """The row for an architecture ("sm_90", "gfx942"), a head dimension (1 to 256), an element size (2 or 4 bytes) and kind of logits."""
    for row in rows_for(architecture):
        if row.bytes == element_bytes and row.cosine == cosine and head_dim <= row.max_dim:
            return row
    raise ValueError(
        f"no tiles for head dimension {head_dim} with {element_bytes}-byte elements on {architecture}"
    )


@functools.lru_cache
def architecture_of(device: torch.device) -> str:
    """Name of a device's architecture; tensors on the CPU are interpreted as if on sm_80."""
    if device.type != "cuda":
        return "sm_80"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"
