"""All kernels compile for GPUs that are not here, spill nothing and fit in shared memory."""

import importlib.util
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks import aot
from benchmarks.aot import VOCABULARIES, architecture_name
from mvar_kernels.backends.triton.tile_config import Config
from mvar_kernels.backends.triton.tile_table import rows_for

from chosen_cases import some

TRITON = version("triton") if importlib.util.find_spec("triton") else None

pytestmark = pytest.mark.skipif(TRITON is None, reason="triton is not installed (it exists for Linux only)")


# Instructions of the main loops on sm_90 with head dimension 64, bfloat16, 64 x 64 scores; cosine attention
# may take 20 % more.
_LOOPS = {"forward": 330, "dq": 300, "dkdv": 380}
_COSINE = 1.2
_GATED_WITH = "3.7.1"
GATED = pytest.mark.skipif(
    TRITON is not None and TRITON != _GATED_WITH,
    reason=f"the tile table is gated with triton {_GATED_WITH}, here is {TRITON}",
)


@pytest.fixture
def compile_rows(monkeypatch, capsys):
    """The command for one target and some rows of its table: reports and exit code."""

    def run(target, rows):
        options = [word for row in rows for word in ("--row", str(row))]
        monkeypatch.setattr(sys, "argv", ["aot", "--target", target, "--json", *options])
        code = aot.main()
        return json.loads(capsys.readouterr().out), code

    return run


def rows_of(target):
    """Return all rows, or two where all of them compiled with this code."""
    numbers = range(len(rows_for(architecture_name(target))))
    known = (Path(__file__).parent / "compiled.txt").read_text().strip() == aot.digest()
    return some(numbers, 2) if known else list(numbers)


@GATED
@pytest.mark.parametrize("target", ["cuda:80", "cuda:90", "hip:gfx942"])
def test_rows_compile_without_spills(target, compile_rows):
    """Every row where the kernels are not those of compiled.txt; once all of them have compiled, record it by
    `python -m benchmarks.aot --digest > tests/benchmarks/compiled.txt`.
    """
    rows = rows_of(target)
    results, code = compile_rows(target, rows)
    problems = [
        (r["kernel"], r["head_dim"], r["element"], r["cosine"], r["problems"])
        for r in results
        if r["problems"]
    ]
    assert not problems and code == 0
    attention = [r for r in results if r["kernel"] != "sample"]
    assert {r["kernel"] for r in attention} == {"forward", "dq", "dkdv"} and len(attention) == 3 * len(rows)
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


@GATED
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("kernel", _LOOPS)
def test_main_loops_stay_short(kernel, cosine):
    """Whatever tiles the table takes."""
    function, constants = aot.variant(kernel, cosine)
    compiled = aot.compile_kernel(function, "cuda:90", "bf16", Config(8, 8, 64, 4, 2), constants, 64)
    loops = aot.report(compiled, "cuda:90")["loops"]
    limit = _LOOPS[kernel] * (_COSINE if cosine else 1)
    assert len(loops) == 1 and loops[0] <= limit


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
