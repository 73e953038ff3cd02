"""Draw who attends to whom: a row per query, a column per key, dark where the query does not look.

`python examples/draw_windows.py --query 600` draws the window of one token on its own grid instead.
"""

import argparse

import numpy as np
from PIL import Image

from mvar_kernels import Pyramid

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--sides", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6, 8, 10, 13, 16])
parser.add_argument("--kernel-size", type=int, default=7)
parser.add_argument("--dense-scales", type=int, default=8)
parser.add_argument("--query", type=int, help="draw this token's window on its own grid")
parser.add_argument("--out", default="windows.png")
arguments = parser.parse_args()

pyramid = Pyramid(arguments.sides, arguments.kernel_size, arguments.dense_scales)
mask = pyramid.mask().numpy()
if arguments.query is None:
    shown = mask * 255
else:
    scale = max(s for s, offset in enumerate(pyramid.offsets) if offset <= arguments.query)
    first, grid = pyramid.offsets[scale], pyramid.sides[scale]
    shown = mask[arguments.query, first : first + grid[0] * grid[1]].reshape(grid) * 128
    shown[np.unravel_index(arguments.query - first, grid)] = 255
    shown = shown.repeat(16, axis=0).repeat(16, axis=1)
Image.fromarray(shown.astype(np.uint8)).save(arguments.out)
print(f"{pyramid}\n{pyramid.attended_pairs():,} of {pyramid.length**2:,} pairs: {arguments.out}")
