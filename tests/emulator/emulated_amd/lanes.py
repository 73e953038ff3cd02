"""What the 64 lanes of a wave exchange, matrix products, and who a lane is."""

from __future__ import annotations

from typing import Any

import numpy as np
from emulated_gpu.faults import Fault, NotEmulated

from emulated_amd.table import Evaluate, intrinsic
from emulated_amd.values import Array, Reader, from_bf16

WAVE = 64
_LANE = np.arange(WAVE)
_XF32_BITS = np.uint32(0xFFFFE000)


@intrinsic("workitem.id.x", "workgroup.id.x")
def identity(operands: list[Reader], name: str) -> Evaluate:
    if name.startswith("workitem"):
        return lambda group: group.lanes
    return lambda group: np.array([group.number], np.int32)


@intrinsic("s.waitcnt", "s.setprio", "sched.barrier", "sched.group.barrier", "iglp.opt", "assume")
def hint(operands: list[Reader], name: str) -> Evaluate:
    return lambda group: None


@intrinsic("s.barrier")
def barrier(operands: list[Reader], name: str) -> Evaluate:
    def evaluate(group: Any) -> None:
        if group.mask is not None:
            raise Fault("a barrier in divergent code")

    return evaluate


def _waves(group: Any, values: Array) -> Array:
    return group.spread(values).reshape(-1, WAVE)


@intrinsic("readfirstlane")
def first_lane(operands: list[Reader], name: str) -> Evaluate:
    def evaluate(group: Any) -> Array:
        active = np.ones(group.size, bool) if group.mask is None else group.mask
        values, first = _waves(group, operands[0](group)), active.reshape(-1, WAVE).argmax(1)
        return np.repeat(values[np.arange(len(values)), first], WAVE)

    return evaluate


@intrinsic("readlane")
def read_lane(operands: list[Reader], name: str) -> Evaluate:
    def evaluate(group: Any) -> Array:
        values, lane = _waves(group, operands[0](group)), int(operands[1](group)[0])
        return np.repeat(values[:, lane], WAVE)

    return evaluate


@intrinsic("ds.bpermute")
def permute(operands: list[Reader], name: str) -> Evaluate:
    """Lane i takes what the lane has whose number, times 4, is its address."""

    def evaluate(group: Any) -> Array:
        source = _waves(group, operands[0](group)) >> 2 & WAVE - 1
        return np.take_along_axis(_waves(group, operands[1](group)), source, 1).ravel()

    return evaluate


@intrinsic("ds.swizzle")
def swizzle(operands: list[Reader], name: str) -> Evaluate:
    """Within 32 lanes: ((lane & and) | or) ^ xor, each of 5 bits of the pattern."""

    def evaluate(group: Any) -> Array:
        pattern = int(operands[1](group)[0])
        if pattern >> 15 & 1:
            raise NotEmulated("ds.swizzle of four lanes")
        source = (_LANE & 31 & pattern | pattern >> 5 & 31) ^ (pattern >> 10 & 31)
        return _waves(group, operands[0](group))[:, _LANE & 32 | source].ravel()

    return evaluate


def dpp_source(control: int) -> tuple[Array, Array]:
    """(lane that each lane takes from, whether there is one); a row is 16 lanes."""
    row, place = _LANE & ~15, _LANE & 15
    always, by = np.ones(WAVE, dtype=bool), control & 15
    if control <= 0xFF:
        return _LANE & ~3 | control >> 2 * (_LANE & 3) & 3, always
    if 0x101 <= control <= 0x10F:  # row_shl
        return _LANE + by, place + by < 16
    if 0x111 <= control <= 0x11F:  # row_shr
        return _LANE - by, place >= by
    if 0x121 <= control <= 0x12F:  # row_ror
        return row + (place - by) % 16, always
    if control == 0x140:  # row_mirror
        return row + 15 - place, always
    if control == 0x141:  # row_half_mirror
        return _LANE & ~7 | 7 - (_LANE & 7), always
    if control == 0x142:  # row_bcast:15
        return row - 1, row > 0
    if control == 0x143:  # row_bcast:31
        return np.full(WAVE, 31), _LANE >= 32
    raise NotEmulated(f"update.dpp {control:#x}")


@intrinsic("update.dpp")
def update(operands: list[Reader], name: str) -> Evaluate:
    """Lanes without a source, and rows and banks that the masks leave out, keep the old value."""

    def evaluate(group: Any) -> Array:
        old, new = (_waves(group, operand(group)) for operand in operands[:2])
        control, rows, banks, zeros = (int(operand(group)[0]) for operand in operands[2:])
        source, exists = dpp_source(control)
        taken = np.where(exists, new[:, np.clip(source, 0, WAVE - 1)], 0 if zeros else old)
        written = (rows >> _LANE // 16 & 1) & (banks >> _LANE % 16 // 4 & 1)
        return np.where(written.astype(bool), taken, old).ravel()

    return evaluate


@intrinsic("mfma.f32.32x32x", "mfma.f32.16x16x")
def matrix_product(operands: list[Reader], name: str) -> Evaluate:
    """n x n x K: lane l holds row (column) l % n of the left (right) operand, part l / n of its K.

    Of the accumulator it holds column l % n, in registers r the rows 4 (64 / n) (r / 4) + 4 (l / n) + r % 4.
    """
    side = 32 if "32x32x" in name else 16
    parts = WAVE // side

    def evaluate(group: Any) -> Array:
        if group.mask is not None:
            raise Fault("mfma in divergent code")
        if any(operand(group).any() for operand in operands[3:]):
            raise NotEmulated("broadcasts of mfma")
        left, right = (_operand(group, operand(group), name, side) for operand in operands[:2])
        product = (left @ right.swapaxes(1, 2)).reshape(-1, side // parts // 4, parts, 4, side)
        mine = product.transpose(0, 2, 4, 1, 3).reshape(group.size, side // parts)
        return (mine + operands[2](group)).astype(np.float32)

    return evaluate


def _operand(group: Any, values: Array, name: str, side: int) -> Array:
    """(waves, side, K) in float64."""
    values = group.spread(values if values.ndim == 2 else values[:, None])
    if "bf16" in name:
        values = from_bf16(values.view(np.uint16))
    elif "xf32" in name:
        values = (np.ascontiguousarray(values).view(np.uint32) & _XF32_BITS).view(np.float32)
    parts = values.astype(np.float64).reshape(-1, WAVE // side, side, values.shape[1])
    return parts.transpose(0, 2, 1, 3).reshape(len(parts), side, -1)
