"""The tile configuration of a launch: a pure function of architecture, head dimension, element size and kind
of logits.

Nothing is searched at run time, and no length of a sequence causes a recompilation. The rows are in
`tile_table.py`.
"""

from __future__ import annotations

import functools

import torch

from mvar_kernels.backends.triton import tile_table
from mvar_kernels.backends.triton.tile_config import Row, family_of


def rows_for(architecture: str) -> tuple[Row, ...]:
    """Return the rows that serve an architecture: its own before its family's, small dimensions first."""
    names = (architecture, family_of(architecture))
    return tuple(
        sorted(
            (row for row in tile_table.ROWS if row.family in names),
            key=lambda row: (names.index(row.family), row.max_dim),
        )
    )


@functools.lru_cache
def tile_row(architecture: str, head_dim: int, element_bytes: int, cosine: bool) -> Row:
    """Return the row that serves these inputs.

    Args:
        architecture: "sm_90", "gfx942" and the like.
        head_dim: 1 to 256.
        element_bytes: 2 or 4.
        cosine: whether for cosine attention.

    Raises:
        ValueError: no row serves them.
    """
    for row in rows_for(architecture):
        if row.bytes == element_bytes and row.cosine == cosine and head_dim <= row.max_dim:
            return row
    raise ValueError(
        f"no tiles for head dimension {head_dim} with {element_bytes}-byte elements on {architecture}"
    )


@functools.lru_cache
def architecture_of(device: torch.device) -> str:
    """Return the name of a device's architecture; tensors on the CPU are interpreted as if on sm_80."""
    if device.type != "cuda":
        return "sm_80"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"
