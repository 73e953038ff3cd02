"""The tiles of a launch: a pure function of architecture, head dimension, element size and kind of logits.

Nothing is searched at run time, and no length of a sequence causes a recompilation.

By ahead-of-time compilation with triton 3.7.1 no configuration spills or exceeds the shared memory of a
target that its row serves; `python -m benchmarks.aot` repeats the check. The rows were found by a greedy
search that started from the previous row, so it is not exhaustive. No GPU has measured their speed yet:
`python -m benchmarks.tune` does, and rewrites the rows below.

Rows of "cuda" serve sm_80 to sm_120. So 99 KiB of shared memory (sm_86, sm_89, sm_120) and the registers of
sm_80 and sm_90 bound them. Rows of "hip" serve gfx942, with 64 KiB and 512 registers per lane: 4 warps do
there what takes 8 on cuda.
"""

from __future__ import annotations

import functools

import torch

from mvar_kernels.backends.triton.tile_config import Config, Row, family_of

_Numbers = tuple[int, int, int, int, int]


def rows_for(architecture: str) -> tuple[Row, ...]:
    """Return the rows that serve an architecture: its own before its family's, small dimensions first."""
    names = (architecture, family_of(architecture))
    return tuple(
        sorted(
            (row for row in ROWS if row.family in names),
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


def _row(
    family: str,
    bytes: int,
    max_dim: int,
    cosine: bool,
    forward: _Numbers,
    dq: _Numbers,
    dkdv: _Numbers,
    *,
    why: str,
) -> Row:
    return Row(family, bytes, max_dim, cosine, Config(*forward), Config(*dq), Config(*dkdv), why)


# Family, bytes per element, largest head dimension, cosine; then (height, width, chunk, warps, stages) of
# forward, of dq, and of dk and dv.
# fmt: off
ROWS = (
    _row("cuda", 2, 64, False, (8, 8, 64, 4, 2), (8, 8, 64, 4, 2), (8, 8, 64, 4, 2),
         why="64 x 64 scores and 4 warps: one warpgroup's product on sm_90"),
    _row("cuda", 2, 64, True, (8, 8, 64, 4, 2), (8, 8, 64, 8, 2), (8, 8, 32, 4, 2),
         why="k (q in dk, dv) is held once more than its product: chunks of 64 spill in dk, dv on sm_80"),
    _row("sm_90", 2, 64, True, (8, 8, 64, 4, 2), (8, 8, 64, 4, 2), (8, 8, 64, 4, 2),
         why="a warpgroup's products leave more registers than sm_80's: no chunk of 32, no 8 warps"),
    _row("cuda", 2, 128, False, (8, 8, 64, 4, 2), (8, 8, 64, 8, 1), (8, 8, 64, 8, 1),
         why="two 64 x 128 float32 accumulators in dk, dv: 4 warps spill, 2 stages of 8 warps exceed 99 KiB"),
    _row("cuda", 2, 128, True, (8, 8, 64, 4, 1), (8, 8, 32, 4, 2), (8, 8, 32, 8, 1),
         why="as above, and the row factors on top"),
    _row("cuda", 2, 256, False, (8, 8, 64, 8, 1), (4, 8, 64, 8, 1), (4, 8, 32, 8, 1),
         why="99 KiB of shared memory and 255 registers leave half a tile to the backward"),
    _row("cuda", 2, 256, True, (8, 8, 32, 8, 1), (4, 8, 64, 8, 1), (4, 8, 32, 8, 2),
         why="as above"),
    _row("cuda", 4, 64, False, (4, 8, 64, 8, 2), (4, 8, 32, 4, 1), (4, 8, 32, 8, 2),
         why="exact float32 products run on the plain units: registers bound the tile"),
    _row("cuda", 4, 64, True, (8, 8, 32, 8, 2), (4, 8, 64, 8, 1), (4, 8, 32, 8, 2),
         why="as above"),
    _row("cuda", 4, 128, False, (4, 8, 32, 8, 2), (4, 4, 16, 4, 1), (4, 8, 16, 8, 1),
         why="as above"),
    _row("cuda", 4, 128, True, (4, 8, 64, 8, 2), (4, 8, 32, 8, 1), (4, 4, 32, 4, 1),
         why="as above"),
    _row("cuda", 4, 256, False, (8, 8, 16, 8, 1), (4, 4, 32, 8, 1), (4, 4, 16, 4, 1),
         why="as above"),
    _row("cuda", 4, 256, True, (4, 4, 32, 8, 1), (4, 4, 32, 4, 1), (4, 8, 16, 8, 1),
         why="as above"),
    _row("hip", 2, 64, False, (8, 8, 64, 4, 2), (8, 8, 64, 4, 2), (8, 8, 64, 4, 2),
         why="512 registers per lane: everything fits"),
    _row("hip", 2, 64, True, (8, 8, 64, 4, 2), (8, 8, 64, 4, 2), (8, 8, 64, 4, 2),
         why="the same"),
    _row("hip", 2, 128, False, (8, 8, 64, 4, 2), (8, 8, 64, 4, 2), (8, 8, 64, 4, 1),
         why="the same"),
    _row("hip", 2, 128, True, (8, 8, 64, 4, 2), (8, 8, 64, 4, 2), (8, 8, 32, 4, 2),
         why="chunks of 64 spill in dk, dv"),
    _row("hip", 2, 256, False, (8, 8, 64, 4, 1), (8, 8, 32, 4, 2), (4, 8, 32, 4, 1),
         why="64 KiB: one stage forward; the backward spills with more"),
    _row("hip", 2, 256, True, (8, 8, 64, 4, 1), (8, 8, 32, 4, 1), (4, 8, 32, 4, 1),
         why="the same"),
    _row("hip", 4, 64, False, (8, 8, 64, 4, 2), (8, 8, 64, 4, 2), (8, 8, 64, 4, 1),
         why="512 registers per lane: everything fits"),
    _row("hip", 4, 64, True, (8, 8, 64, 4, 2), (8, 8, 64, 4, 1), (8, 8, 32, 4, 2),
         why="the same"),
    _row("hip", 4, 128, False, (8, 8, 64, 4, 1), (8, 8, 32, 4, 2), (8, 8, 32, 4, 1),
         why="64 KiB and registers"),
    _row("hip", 4, 128, True, (8, 8, 64, 4, 1), (8, 8, 32, 4, 1), (8, 8, 16, 4, 2),
         why="the same"),
    _row("hip", 4, 256, False, (4, 8, 32, 4, 1), (8, 8, 16, 4, 2), (4, 8, 16, 4, 2),
         why="the same"),
    _row("hip", 4, 256, True, (4, 8, 32, 4, 1), (4, 8, 16, 4, 1), (4, 8, 16, 4, 1),
         why="the same"),
)
