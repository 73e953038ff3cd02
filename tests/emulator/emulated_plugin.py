"""pytest -p emulated_plugin tests/triton: the GPU tests on an emulated GPU (see `make test-emulated`).

Environment: EMULATED is the compute capability (90), or gfx942. EMULATED_WARPS is how many warps run in
    lockstep: 1 finds races, 0 (all) is about twice as fast and the default, except for sm_100, whose warps
    meet one barrier from different places. EMULATED_SEED orders warps and programs.
"""

import os

import torch
from emulated_gpu import mvar_backend

os.environ.setdefault("EMULATED", "90")
torch.set_num_threads(1)
TARGET = os.environ["EMULATED"]
mvar_backend.install(
    int(TARGET) if TARGET.isdigit() else TARGET,
    unit_warps=int(os.environ.get("EMULATED_WARPS") or (TARGET == "100")),
    seed=int(os.environ.get("EMULATED_SEED", "0")),
)
