"""What a run writes appears complete or not at all, and a failure is one line that names what is intact."""

import errno
import os

import pytest
from PIL import Image

from mvar_models.distributed import Processes, RunStopped
from mvar_models.training.metrics_log import Metrics
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
    return RunWriter(folder, Processes(), Metrics(folder, tensorboard=False))


def checkpoint(writer, step, save=lambda path: (path / "tensors").write_text("all")):
    progress = {"step": step, "best": None, "examples": 1, "fingerprint": ""}
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


def test_a_model(writer, folder):
    writer.model("the best model", folder.best, lambda path: (path / "weights").write_text("1"))
    with pytest.raises(RunStopped, match="the best model"):
        writer.model("the best model", folder.best, fails)
    assert (folder.best / "weights").read_text() == "1"


def test_a_checkpoint(writer, folder):
    checkpoint(writer, 5)
    with pytest.raises(RunStopped, match=r"step 10 .*step 5 is intact"):
        checkpoint(writer, 10, fails)
    assert folder.last_step() == 5
    assert (folder.checkpoint(5).folder / "tensors").read_text() == "all"
    assert not list(folder.path.rglob(".writing-*"))
