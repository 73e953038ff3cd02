"""pytest -p emulated_plugin tests/triton: the GPU tests on an emulated GPU (see `make test-emulated`).

Environment: EMULATED is the compute capability (90). EMULATED_WARPS is how many warps run in lockstep: 1
    finds races, 0 (all, the default) is about twice as fast. EMULATED_SEED orders warps and programs.
"""

import os

import torch
from emulated_gpu import mvar_backend

os.environ.setdefault("EMULATED", "90")
torch.set_num_threads(1)
mvar_backend.install(
    int(os.environ["EMULATED"]),
    unit_warps=int(os.environ.get("EMULATED_WARPS", "0")),
    seed=int(os.environ.get("EMULATED_SEED", "0")),
)
