"""The rows of the tile table, with the reason for each.

By ahead-of-time compilation with triton 3.7.1 no configuration spills or exceeds the shared memory of a
target that its row serves; `python -m mvar_kernels.aot` repeats the check. The rows were found by a greedy
search that started from the previous row, so it is not exhaustive. No GPU has measured their speed yet:
`python -m benchmarks.tune` does, and rewrites the rows below.

Rows of "cuda" serve sm_80 to sm_120. So 99 KiB of shared memory (sm_86, sm_89, sm_120) and the registers of
sm_80 and sm_90 bound them. Rows of "hip" serve gfx942, with 64 KiB and 512 registers per lane: 4 warps do
there what takes 8 on cuda.
"""

from __future__ import annotations

from mvar_kernels.backends.triton.tile_config import Config, Row

_Numbers = tuple[int, int, int, int, int]


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
