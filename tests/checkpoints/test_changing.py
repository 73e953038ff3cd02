"""A folder that one process rewrites while another loads it: always the model of one save, whole."""

import functools
import logging
import shutil
import signal
import time

import pytest

from mvar_models import MVAR, MVARPipeline
from mvar_models.checkpoints import checkpoint as opening
from mvar_models.training.run_folder import RunFolder
from mvar_models.training.run_writer import RunWriter

from checkpoint_cases import one_line
from fork_cases import Forked
from tiny_models import tiny_mvar, tiny_vqvae


def model_of(number):
    model = tiny_mvar()
    model.config = model.config.replace(guidance_scale=float(number))
    for parameter in model.parameters():
        parameter.data.fill_(number)
    return model


def write(how, folder):
    """Save models to a folder in turns, for ever: weights and guidance are the model's number."""

    def save(model, folder):
        saved = model if how == "model" else MVARPipeline(model, tiny_vqvae())
        saved.save_pretrained(folder)

    models = [model_of(number) for number in range(1, 4)]
    writer = RunWriter(RunFolder(folder.parent))
    while True:
        for model in models:
            if how == "run":
                writer.model("the model", folder, functools.partial(save, model))
            else:
                save(model, folder)
            (folder.parent / "saved").touch()


@pytest.fixture
def rewritten(tmp_path):
    """Start a process that writes a folder; return the folder."""
    started = []

    def start(how):
        folder = tmp_path / "best"
        started.append(Forked(lambda: write(how, folder)))
        while not (tmp_path / "saved").exists():
            assert started[-1].poll() is None
            time.sleep(0.01)
        return folder

    yield start
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("how", ["model", "pipeline", "run"])
def test_what_is_loaded_is_the_model_of_one_save(rewritten, how):
    folder = rewritten(how)
    load = MVAR.from_pretrained if how == "model" else lambda place: MVARPipeline.from_pretrained(place).model
    found = set()
    for _ in range(30):
        model = load(folder)
        tensors = model.state_dict().values()
        numbers = {value for tensor in tensors for value in (tensor.min().item(), tensor.max().item())}
        assert numbers == {model.config.guidance_scale}
        found |= numbers
    assert len(found) > 1, "the folder did not change while it was read"


def test_a_configuration_of_another_save_is_said(tmp_path, monkeypatch, caplog):
    """A save that was killed between its files, or an edited configuration: which one, nobody can tell."""
    monkeypatch.setattr(opening, "_PATIENCE", 0.05)
    model = tiny_mvar()
    model.save_pretrained(tmp_path / "one")
    model.config = model.config.replace(guidance_scale=9.0)
    model.save_pretrained(tmp_path / "two")
    with caplog.at_level(logging.WARNING):
        MVAR.from_pretrained(tmp_path / "one")
    assert not caplog.records
    shutil.copy(tmp_path / "one" / "config.json", tmp_path / "two")
    with caplog.at_level(logging.WARNING):
        MVAR.from_pretrained(tmp_path / "two")
    (record,) = caplog.records
    assert "two/config.json is not the one that model.safetensors was saved with" in record.getMessage()


def test_a_file_that_vanishes_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "_PATIENCE", 0.05)
    tiny_mvar().save_pretrained(tmp_path)
    checkpoint = opening.open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors") as error:
        MVAR.from_pretrained(checkpoint)
    one_line(error)
