"""A GPU on a CPU: executes the PTX that Triton compiles, and faults where a GPU would go wrong in silence.

`driver.install(90)` makes an emulated GPU of compute capability 9.0 the one that Triton compiles for and
launches on. Its memory is that of CPU tensors.

    parse          PTX text -> basic blocks of instructions
    translate      instructions -> actions on a unit of warps: arithmetic, bits, moves, loads, warp, tensor
    program        thread blocks, their units of warps, who runs when
    global_memory  bounds, alignment, elements, conflicts between programs
    shared_memory  races between warps, reads of what was never written, asynchronous copies under way
    counters       what a launch executed: instructions, sectors, wavefronts, FLOPs; counting fills them
    driver         what Triton talks to

Not covered: ptxas and SASS; tcgen05 and mbarrier (sm_100); memory order across programs; the approximation
error of ex2, lg2, rcp and division, which are exact to a rounding here while a GPU errs by about 2 units in
the last place.
"""
