"""The tuner keeps what is fastest and rewrites the tile table; predictions count what is compiled."""

import dataclasses
import importlib.metadata
import importlib.util
import math

import pytest
import torch

from benchmarks import tune
from benchmarks.core.cases import grid
from benchmarks.estimates import executed, predict
from mvar_kernels.backends.triton import tile_table
from mvar_kernels.backends.triton.tile_config import Config
from mvar_kernels.backends.triton.tile_table import tile_row

if importlib.util.find_spec("triton"):
    TRITON = tuple(map(int, importlib.metadata.version("triton").split(".")[:2]))
else:
    TRITON = (0, 0)


def test_tuner_takes_what_is_clearly_faster():
    start = tile_row("sm_90", 64, 2, False)._replace(family="sm_90")
    wanted = Config(4, 8, 128, 8, 3)
    trials = []

    def seconds(row, kernel):
        """A tenth less for every number of dq that is as wanted; other kernels are all equally fast."""
        matches = sum(actual == best for actual, best in zip(row.dq, wanted))
        return 1.0 - 0.1 * matches if kernel == "dq" else 1.0

    tuned = start
    for kernel in tune.KERNELS:
        tuned = tune.best(tuned, kernel, seconds, trials, lambda: False)
    assert tuned.dq == wanted
    assert tuned.forward == start.forward
    assert tuned.dkdv == start.dkdv
    assert sum(trial["chosen"] for trial in trials) == len(tune.KERNELS)
    assert len({(t["kernel"], t["config"]) for t in trials}) == len(trials), "nothing is tried twice"


def test_tuner_stops_in_time_and_ignores_noise():
    start = tile_row("sm_90", 64, 2, False)
    assert tune.best(start, "dq", lambda row, kernel: 1.0, [], lambda: True) == start
    slightly = tune.best(
        start, "dq", lambda row, kernel: 1.0 if row.dq == start.dq else 0.99, [], lambda: False
    )
    assert slightly == start, "one percent is noise"


def test_tuned_rows_are_rendered_and_used():
    start = tile_row("sm_90", 64, 2, False)
    tuned = start._replace(family="sm_90", dq=Config(4, 8, 128, 8, 3))
    assert tuned.dq != start.dq
    namespace = {}
    exec(compile(tune.render((*tile_table.ROWS, tuned)), "tile_table.py", "exec"), namespace)
    assert namespace["ROWS"] == (*tile_table.ROWS, tuned)
    with tune.trying(tuned):
        assert tile_row("sm_90", 64, 2, False).dq == tuned.dq
    assert tile_row("sm_90", 64, 2, False).dq == start.dq


@pytest.mark.skipif(TRITON == (0, 0), reason="triton is not installed (it exists for Linux only)")
@pytest.mark.skipif(TRITON < (3, 3), reason="compiling ahead of time needs triton 3.3 or newer")
def test_predictions_count_what_is_compiled():
    case = grid(16, batch=4, heads=2, dtype=torch.bfloat16).both()
    gpu = predict.GPUS["H200"]
    found = {p.kernel: p for p in predict.predict(case, gpu)}
    assert set(found) == {"forward", "dq", "dkdv"}
    assert all(p.tiles == 4 and p.issue_seconds > 0 for p in found.values())
    assert sum(p.bytes_seconds for p in found.values()) >= case.least_bytes / gpu.bandwidth
    twice = next(iter(predict.predict(dataclasses.replace(case, batch=8), gpu)))
    assert math.isclose(twice.issue_seconds, 2 * found["forward"].issue_seconds)


@pytest.mark.skipif(TRITON < (3, 3), reason="compiling ahead of time needs triton 3.3 or newer")
def test_predictions_rest_on_executed_counts_where_they_exist(monkeypatch):
    """Shared memory bounds what executes a million wavefronts per head; nothing was counted for 17 x 17."""
    case, gpu = grid(64, batch=4, heads=2, dtype=torch.bfloat16), predict.GPUS["H200"]
    record = {"case": "grid 64", "kernel": "forward", "wavefronts": 10**6, "operand_bytes": 128 * 10**6}
    monkeypatch.setattr(executed, "_results", lambda _: {"records": [{**record, "tensor_flops": 989e6}]})
    found = next(iter(predict.predict(case, gpu)))
    assert math.isclose(found.shared_seconds, 8 * 2 * 10**6 / (132 * 1.98e9))
    assert math.isclose(found.tensor_seconds, 8e-6)
    assert found.seconds == found.shared_seconds > found.bytes_seconds
    other = next(iter(predict.predict(grid(17, dtype=torch.bfloat16), gpu)))
    assert (other.shared_seconds, other.tensor_seconds) == (0.0, 0.0)
