"""Matrices laid out in shared memory element by element, for the tests of tensor-core instructions."""

import numpy as np


def halves(values, kind):
    """The bits of an element: 16 for halves, 32 for TF32."""
    if kind == "f16":
        return int(np.float16(values).view(np.uint16))
    return int(np.float32(values).view(np.uint32)) >> (16 if kind == "bf16" else 0)


def draw(rng, shape, kind):
    """Values that the type holds exactly."""
    values = rng.standard_normal(shape).astype(np.float32)
    if kind == "f16":
        return values.astype(np.float16).astype(np.float32)
    return (values.view(np.uint32) & np.uint32(0xFFFF0000 if kind == "bf16" else 0xFFFFE000)).view(np.float32)


def fill_shared(size):
    """Copies `size` bytes of the first tensor to shared memory, 4 bytes per thread of one warp at a time."""
    lines = ["mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 2; mov.b32 %r3, global_smem; add.s32 %r4, %r2, %r3;"]
    lines += ["cvt.u64.u32 %rd1, %r2; add.s64 %rd2, %rd30, %rd1; add.s64 %rd3, %rd31, %rd1;"]
    for start in range(0, size, 128):
        lines += [f"ld.global.b32 %r5, [%rd2 + {start}]; st.shared.b32 [%r4 + {start}], %r5;"]
    return "\n".join([*lines, "bar.sync 0;"])


WIDTHS = {0: 16, 1: 128, 2: 64, 3: 32}


def swizzled(row, byte, width):
    """Offset of a byte in the canonical K-major layout.

    8 rows per block, 16-byte units mixed with the line.
    """
    offset = row // 8 * 8 * width + row % 8 * width + byte
    return offset ^ (((offset >> 7) & (width // 16 - 1)) << 4)


def descriptor(start, mode, stride, leading=0):
    return start >> 4 | (leading >> 4) << 16 | (stride >> 4) << 32 | mode << 62
