"""All kernels compile for GPUs that are not here, spill nothing and fit in shared memory."""

import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from benchmarks.aot import VOCABULARIES, architecture_name
from mvar_kernels.backends.triton.tile_table import rows_for

TRITON = version("triton") if importlib.util.find_spec("triton") else None

pytestmark = pytest.mark.skipif(TRITON is None, reason="triton is not installed (it exists for Linux only)")


# Instructions of the main loops on sm_90 with head dimension 64, bfloat16, 64 x 64 scores; cosine attention
# may take 20 % more.
_LOOPS = {"forward": 330, "dq": 300, "dkdv": 380}
_COSINE = 1.2
_GATED_WITH = "3.7.1"


def compile_all(target):
    """A process of its own: compiling and interpreting exclude each other."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.aot", "--target", target, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode in (0, 1), done.stderr[-3000:]
    return json.loads(done.stdout), done.returncode


@pytest.mark.skipif(
    TRITON is not None and TRITON != _GATED_WITH,
    reason=f"the tile table is gated with triton {_GATED_WITH}, here is {TRITON}",
)
@pytest.mark.parametrize("target", ["cuda:80", "cuda:90", "hip:gfx942"])
def test_every_row_compiles_without_spills(target):
    results, code = compile_all(target)
    problems = [
        (r["kernel"], r["head_dim"], r["element"], r["cosine"], r["problems"])
        for r in results
        if r["problems"]
    ]
    assert not problems and code == 0
    attention = [r for r in results if r["kernel"] != "sample"]
    assert {r["kernel"] for r in attention} == {"forward", "dq", "dkdv"} and len(attention) == 3 * len(
        rows_for(architecture_name(target))
    )
    assert all(r["tensor_core"] > 0 for r in attention if r["element"] == "bf16"), (
        "products should run on tensor cores"
    )
    check_sample_kernel(target, [r for r in results if r["kernel"] == "sample"])


def check_sample_kernel(target, results):
    """Each bisection compares and adds the 32 logits of a thread, and little more."""
    assert [r["variant"] for r in results] == [f"V {vocabulary}" for vocabulary in VOCABULARIES]
    assert all(r["shared"] <= 1024 for r in results), "a row of logits stays in registers"
    for r in results[:3] if target.startswith("cuda") else ():
        top_k, top_p, *_ = r["loops"]
        assert max(top_k, top_p) <= 160, r["variant"]


_LOOPS_CODE = """
import json
from benchmarks import aot
from mvar_kernels.backends.triton.tile_config import Config
results = []
for name in ("forward", "dq", "dkdv"):
    for cosine in (False, True):
        function, constants = aot.variant(name, cosine)
        kernel = aot.compile_kernel(function, "cuda:90", "bf16", Config(8, 8, 64, 4, 2), constants, 64)
        results.append([name, cosine, aot.report(kernel, "cuda:90")["loops"]])
print(json.dumps(results))
"""


@pytest.mark.skipif(
    TRITON is not None and TRITON != _GATED_WITH,
    reason=f"loops were counted with triton {_GATED_WITH}, here is {TRITON}",
)
def test_main_loops_stay_short():
    """Whatever tiles the table takes."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", _LOOPS_CODE], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout)
    assert len(results) == 6
    for kernel, cosine, loops in results:
        limit = _LOOPS[kernel] * (_COSINE if cosine else 1)
        assert len(loops) == 1 and loops[0] <= limit, (kernel, cosine, loops, limit)


@pytest.mark.skipif(
    TRITON is None or tuple(map(int, TRITON.split(".")[:2])) >= (3, 3),
    reason="triton 3.3 and newer compile ahead of time",
)
def test_an_old_triton_is_refused_in_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.aot", "--target", "cuda:90"], capture_output=True, text=True
    )
    assert (
        done.returncode == 2
        and f"needs triton 3.3 or newer, here is {TRITON}" in done.stderr
        and "Traceback" not in done.stderr
    )
