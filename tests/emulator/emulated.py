"""Small kernels written by hand, for the emulator's own tests."""

from __future__ import annotations

import random

import numpy as np
import torch
from emulated_gpu.global_memory import Global
from emulated_gpu.number_types import UNSIGNED
from emulated_gpu.program import Code, Program, launch

_REGISTERS = """
.reg .pred %p<40>;
.reg .b16 %rs<40>;
.reg .b32 %r<200>;
.reg .f32 %f<200>;
.reg .b64 %rd<40>;
"""
_BITS = {"%p": 1, "%rs": 16, "%r": 32, "%f": 32, "%rd": 64}


def kernel(body, parameters=(), threads=32):
    """PTX of a kernel with this body; `parameters` are .u64 and are loaded into %rd30, %rd31, ..."""
    declared = ", ".join(f".param .u64 {name}" for name in parameters)
    loads = "\n".join(f"ld.param.u64 %rd{30 + i}, [{name}];" for i, name in enumerate(parameters))
    header = f".visible .entry hand_written({declared})\n.reqntid {threads}\n"
    return f"{header}{{{_REGISTERS}{loads}\n{body}\nret;\n}}"


def execute(body, threads=32, shared_size=0, unit_warps=0, **registers):
    """Run a body without memory on one program; registers are named without "%".

    Values may be of any dtype of the register's width. The result maps every register in use to its bits.
    """
    code = Code(kernel(body, threads=threads))
    # Global memory needs at least one tensor; nothing accesses this one.
    memory = Global([torch.zeros(1)])
    program = Program(code, 0, 1, [], memory, shared_size, unit_warps, random.Random(0))
    for name, value in registers.items():
        if f"%{name}" in code.numbers:
            for unit in program.units:
                mine = np.ascontiguousarray(np.broadcast_to(value, (threads,))[unit.thread_ids])
                bits = 8 * mine.dtype.itemsize
                unit.registers[code.numbers[f"%{name}"]] = (
                    mine if mine.dtype == bool else mine.view(UNSIGNED[bits])
                )
    with np.errstate(all="ignore"):
        program.run()
    return {
        name[1:]: np.concatenate([unit.registers[index] for unit in program.units])
        for name, index in code.numbers.items()
        if all(unit.registers[index] is not None for unit in program.units)
    }


def run_on(body, *tensors, grid=1, threads=32, shared_size=4096, unit_warps=1, seed=0):
    """Run a body on tensors, whose addresses are in %rd30, %rd31, ...; returns what the launch did."""
    names = [f"p{i}" for i in range(len(tensors))]
    arguments = [np.uint64(tensor.data_ptr()) for tensor in tensors]
    code = Code(kernel(body, names, threads))
    return launch(code, grid, arguments, list(tensors), shared_size, unit_warps, seed)


def floats(rng, count=32):
    """float32 of many magnitudes, and the special ones."""
    values = (rng.standard_normal(count) * 2.0 ** rng.integers(-30, 30, count)).astype(np.float32)
    values[:8] = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, 3.4e38, -1.0]
    return values


def integers(rng, dtype, count=32):
    """Integers over the whole range, with its ends."""
    info = np.iinfo(dtype)
    values = rng.integers(info.min, info.max, count, dtype=dtype, endpoint=True)
    values[:4] = [0, 1, info.min, info.max]
    return values
