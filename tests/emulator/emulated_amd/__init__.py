"""An emulated AMD GPU: executes the LLVM IR that Triton makes for gfx942.

    parse.py             text to blocks of instructions, types, constants
    values.py            operands, and bfloat16
    scalar.py            arithmetic, comparisons, conversions
    vectors.py           extract, insert, shuffle
    memory.py            loads, stores, buffers
    lanes.py             what lanes of a wave exchange, and matrix products
    workgroup.py         registers, who is where, local memory
    driver.py            Triton's driver

It proves what Triton decides: layouts, masks, places of barriers, operands of products. Not covered: LLVM's
code generation, registers, waits, and races, as all waves of a workgroup run in lockstep.
"""
