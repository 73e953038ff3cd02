"""What a run writes appears complete or not at all, and a failure is one line that names what is intact."""

import errno
import os
import sys

import pytest
import torch
from PIL import Image

from mvar_models.distributed import RunStopped
from mvar_models.environment import peak_memory_gb
from mvar_models.training.run_folder import RunFolder
from mvar_models.training.run_writer import RunWriter
from mvar_models.training.settings import TransformerSettings


def fails(*given):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(TransformerSettings(data="digits", out=str(tmp_path / "run")))


@pytest.fixture
def writer(folder):
    return RunWriter(folder)


def checkpoint(writer, step, save=lambda path: (path / "tensors").write_text("all")):
    progress = {"step": step, "best": None, "examples": 1, "fingerprint": "", "stamps": ""}
    progress["loss_scale"] = {"factor": 1.0, "good_steps": 0, "skipped_steps": 0}
    writer.checkpoint(save, progress, {}, everywhere=False, keep=2)


def test_metrics(writer, folder, monkeypatch):
    writer.log({"step": 1, "loss": 2.0})
    assert folder.metrics() == [{"step": 1, "loss": 2.0}]
    monkeypatch.setattr(folder, "log", fails)
    with pytest.raises(RunStopped, match=r"metrics .*No space left"):
        writer.log({"step": 2})


def test_samples(writer, folder):
    writer.samples(5, None)
    assert not folder.has_samples(5)
    writer.samples(5, Image.new("RGB", (4, 4), "red"))
    assert folder.has_samples(5)
    with Image.open(folder.samples_of(5)) as image:
        assert image.getpixel((0, 0)) == (255, 0, 0)


def test_a_model_replaces_the_previous_one_only_when_complete(writer, folder):
    writer.model("the best model", folder.best, lambda path: (path / "weights").write_text("first"))

    def fails(path):
        (path / "weights").write_text("second")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunStopped, match=r"the best model .*No space left.*no checkpoint"):
        writer.model("the best model", folder.best, fails)
    assert (folder.best / "weights").read_text() == "first"
    assert not list(folder.path.rglob(".writing-*"))


def test_the_gpu_s_memory_is_no_full_disk(writer, folder):
    def fails(path):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        writer.model("the best model", folder.best, fails)


def test_a_checkpoint(writer, folder):
    checkpoint(writer, 5)
    with pytest.raises(RunStopped, match=r"step 10 .*step 5 is intact; .*--resume"):
        checkpoint(writer, 10, fails)
    assert folder.last_step() == 5
    assert (folder.checkpoint(5).folder / "tensors").read_text() == "all"
    assert not list(folder.path.rglob(".writing-*"))


def write(folder, tensorboard):
    with RunWriter(folder, tensorboard=tensorboard) as writer:
        writer.log({"step": 1, "loss": 2.0, "grad_norm": None})
        writer.log({"step": 2, "val_loss_per_scale": [1.0, 3.0]})
        writer.samples(2, Image.new("RGB", (4, 4), "red"))


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
        RunWriter(RunFolder(tmp_path), tensorboard=True)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not report the peak")
def test_peak_memory_grows_with_what_is_held():
    before = peak_memory_gb(torch.device("cpu"))
    held = torch.ones(300_000_000 // 4)
    assert held.sum() > 0
    assert before is not None
    assert peak_memory_gb(torch.device("cpu")) <= before + 2
    assert peak_memory_gb(torch.device("cpu")) >= 0.3
