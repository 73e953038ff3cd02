"""The emulated suite counts what small kernels execute, and says in one line what it lacks."""

import importlib.metadata
import importlib.util
import json
import os

import pytest
import torch
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.core.cases import grid
from benchmarks.estimates import executed
from benchmarks.suites import emulated

FOUND = importlib.metadata.version("triton") if importlib.util.find_spec("triton") else "no triton"


def run(tmp_path, monkeypatch, case):
    monkeypatch.setattr(emulated, "counted_cases", lambda: (case,))
    result = CliRunner().invoke(main, ["--suite", "emulated", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.skipif(
    FOUND != emulated.TRITON, reason=f"the emulator knows the PTX of triton {emulated.TRITON}"
)
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"), reason="nothing is compiled")
def test_a_tile_of_one_grid(tmp_path, monkeypatch):
    """An 8 x 8 grid is one program that reads and writes every tensor once."""
    case = grid(8, heads=1, dtype=torch.bfloat16)
    assert "grid 8 | dkdv" in run(tmp_path, monkeypatch, case)
    found = {r["kernel"]: r for r in json.loads((tmp_path / "emulated.json").read_text())["records"]}
    assert set(found) == {"forward", "dq", "dkdv"}
    tensor = 64 * 64 * 2
    for record in found.values():
        assert record["programs"] == 1
        for name in ("Q", "K", "V"):
            assert record["tensor_touched"][name] == tensor
            assert record["tensor_sectors"][name] == tensor // 32
        assert sum(record[name] for name in emulated.CLASSES) == record["instructions"]
        assert record["wavefronts"] >= record["conflict_free"] > 0
    # Two products of 64 x 64 x 64, and that of the mask's 16 features.
    assert found["forward"]["tensor_flops"] == 2 * 64 * 64 * (2 * 64 + 16)


def test_what_is_missing_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(emulated, "EMULATOR", tmp_path / "absent")
    assert "skipped: needs the emulated GPU in tests/emulator" in run(tmp_path, monkeypatch, grid(8))
    monkeypatch.undo()
    monkeypatch.setattr(emulated, "TRITON", "0.0.1")
    assert "skipped: needs triton 0.0.1" in run(tmp_path, monkeypatch, grid(8))


def test_targets_say_what_was_missed():
    record = {
        "case": "pyramid 256px", "sectors": 100, "requested_bytes": 3200, "coalesced_sectors": 100,
        "tensor_touched": {"Q": 1200}, "table_touched": {"START": 400}, "wavefronts": 12, "conflict_free": 10,
    }  # fmt: skip
    lines = list(emulated.targets([{**record, "kernel": name} for name in ("forward", "dq", "dkdv")]))
    marks = [line.split("]")[0] for line in lines]
    # Sectors are coalesced; 3,200 bytes for 1,600 forward, 6,400 for 2,000 backward; 1.2 wavefronts.
    assert marks == ["[reached", "[MISSED", "[MISSED", "[MISSED"]
    assert "3.20 x touching each byte once with one head, 5.33 x where many heads" in lines[2]


def test_committed_counts_are_of_every_counted_case():
    for architecture in ("sm_80", "sm_90"):
        assert "commit" in executed.source(architecture)
        for case in executed.counted_cases():
            found = executed.executed(case, architecture)
            assert set(found) == {"forward", "dq", "dkdv"}, (architecture, case)
    assert executed.executed(grid(24, heads=1, dtype=torch.bfloat16), "sm_90") == {}
