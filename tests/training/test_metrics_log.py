"""Figures go to metrics.jsonl, and to TensorBoard if it is enabled."""

import sys

import pytest
import torch
from PIL import Image

from mvar_models.training.metrics_log import Metrics, memory_gb
from mvar_models.training.run_folder import RunFolder


def write(folder, tensorboard):
    with Metrics(folder, tensorboard=tensorboard) as metrics:
        metrics.add({"step": 1, "loss": 2.0, "grad_norm": None})
        metrics.add({"step": 2, "val_loss_per_scale": [1.0, 3.0]})
        metrics.add_image(2, Image.new("RGB", (4, 4), "red"))


@pytest.mark.parametrize("tensorboard", [False, True])
def test_what_is_written(tmp_path, tensorboard):
    folder = RunFolder(tmp_path)
    write(folder, tensorboard)
    assert [line["step"] for line in folder.metrics()] == [1, 2]
    assert folder.has_samples(2)
    assert (tmp_path / "tensorboard").exists() == tensorboard


def test_a_list_becomes_curves(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write(RunFolder(tmp_path), True)
    board = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert set(board.Tags()["scalars"]) == {"loss", "val_loss_per_scale/0", "val_loss_per_scale/1"}
    assert [event.value for event in board.Scalars("val_loss_per_scale/1")] == [3.0]
    assert board.Tags()["images"] == ["samples"]


def test_tensorboard_needs_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r"tensorboard .*\[tensorboard\]"):
        Metrics(RunFolder(tmp_path), tensorboard=True)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not report the peak")
def test_peak_memory_grows_with_what_is_held():
    before = memory_gb(torch.device("cpu"))
    held = torch.ones(300_000_000 // 4)
    assert held.sum() > 0
    assert before is not None
    assert memory_gb(torch.device("cpu")) <= before + 2
    assert memory_gb(torch.device("cpu")) >= 0.3
