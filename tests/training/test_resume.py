"""Whatever ends a run (kill -9, signals, a full disk, NaN, other data), it resumes to the same bits."""

import json
import os
import random
import shutil
import signal
import sys

import pytest
import torch
from PIL import Image

from mvar_models import MVAR
from mvar_models.checkpoints.tensor_files import read_state
from mvar_models.training import state
from mvar_models.training.held_out_distance import HeldOutDistance
from mvar_models.training.loop import Loop
from mvar_models.training.run_folder import RunFolder
from mvar_models.training.transformer_task import TransformerTask

from fork_cases import Forked
from run_cases import (
    arguments,
    assert_same_bits,
    invoke,
    losses,
    make_data,
    run,
    succeed,
    wait_for_step,
    weights,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("resume"))


def dies_while_writing(*command):
    """Run the command until half of a checkpoint is written, some files whole and one cut short."""
    write = state.save_safetensors

    def dies(tensors, path, *rest):
        write(tensors, path, *rest)
        if path.name == "optimizer.safetensors":
            path.write_bytes(path.read_bytes()[:1000])
            os.kill(os.getpid(), signal.SIGKILL)

    state.save_safetensors = dies
    succeed(*command)


@pytest.mark.skipif(sys.platform == "win32", reason="fork and kill -9 are POSIX")
def test_kill_9_five_times(folder, seed):
    """Four times at a random step and once in the middle of writing a checkpoint."""
    options = dict(steps=60, save_every=4, validate_every=20, ema=0.9)
    options |= dict(evaluate_every=10, evaluate_features="pixels")
    succeed(*arguments(folder, "straight", **options))
    out = folder / "killed"
    at = sorted(random.Random(seed).sample(range(2, 46), 4))
    kills: list[int | None] = [*at[:2], None, *at[2:]]
    print(f"killed at steps {kills}; None is in the middle of a checkpoint")
    reached = []
    for step in kills:
        command = ["train", "--resume", out] if reached else arguments(folder, "killed", **options)
        run = dies_while_writing if step is None else succeed
        process = Forked(lambda run=run, command=command: run(*command))
        if step is not None:
            wait_for_step(process, out, step)
            process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        reached.append(RunFolder(out).last_step())
        if step is None:
            (left,) = (out / "checkpoints").glob(".writing-*")
            assert (left / "optimizer.safetensors").stat().st_size == 1000
    assert reached == sorted(reached), reached
    assert reached[-1] < 60, reached
    succeed("train", "--resume", out)
    assert_same_bits(folder / "straight", out)
    assert not list(out.rglob(".writing-*"))
    # A run killed before it had loaded its checkpoint has not begun: no entry is its own.
    assert {entry["step"] for entry in json.loads((out / "environment.json").read_text())} == {0, *reached}


@pytest.mark.parametrize(
    "number, code, name", [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")]
)
def test_signals_save_and_leave(folder, tmp_path, monkeypatch, number, code, name):
    assert invoke(*arguments(folder, tmp_path / "straight", validate_every=4)).exit_code == 0
    plain = Loop.step

    def step(self, index, *rest):
        if index == 6:
            signal.raise_signal(number)
        return plain(self, index, *rest)

    monkeypatch.setattr(Loop, "step", step)
    out = tmp_path / "run"
    result = invoke(*arguments(folder, out, validate_every=4))
    assert result.exit_code == code
    assert f"{name} after step 7" in result.output
    assert f"--resume {out}" in result.output
    assert RunFolder(out).last_step() == 7
    assert losses(out)[-1]["step"] == 7
    monkeypatch.undo()
    assert invoke("train", "--resume", out).exit_code == 0
    assert_same_bits(tmp_path / "straight", out)


def test_a_signal_where_validation_and_samples_are_due_saves_first(folder, tmp_path, monkeypatch):
    """None, nor an evaluation, is begun when half a minute is left; the run makes them up when it goes on."""
    options = dict(validate_every=4, sample_every=4, evaluate_every=4, evaluate_features="pixels")
    assert invoke(*arguments(folder, tmp_path / "straight", **options)).exit_code == 0
    plain = Loop.step

    def step(self, index, *rest):
        if index == 7:
            signal.raise_signal(signal.SIGTERM)
        return plain(self, index, *rest)

    monkeypatch.setattr(Loop, "step", step)
    out = tmp_path / "run"
    assert invoke(*arguments(folder, out, **options)).exit_code == 143
    monkeypatch.undo()
    assert RunFolder(out).last_step() == 8
    assert not {"val_loss", "fd"} & set(losses(out)[-1])
    assert not (out / "samples" / "step-000008.png").exists()
    assert invoke("train", "--resume", out).exit_code == 0
    assert_same_bits(tmp_path / "straight", out)
    for name in ("step-000004.png", "step-000008.png", "step-000012.png"):
        assert (out / "samples" / name).read_bytes() == (
            tmp_path / "straight" / "samples" / name
        ).read_bytes()


@pytest.mark.parametrize("stopped", ["before", "after"])
def test_a_stop_in_a_validation_that_is_caught_up(folder, tmp_path, monkeypatch, stopped):
    """It is caught up again, until the best model is written too; and later models are compared with it."""
    figures = {4: 3.0, 8: 1.0, 12: 2.0}
    plain_validate, plain_log, plain_step = Loop.validate, RunFolder.log, Loop.step

    def validate(self, step):
        self.task.validate = lambda: {"val_loss": figures[step], "val_loss_per_scale": []}
        return plain_validate(self, step)

    monkeypatch.setattr(Loop, "validate", validate)
    assert invoke(*arguments(folder, tmp_path / "straight", validate_every=4)).exit_code == 0
    out = tmp_path / "run"

    def step(self, index, *rest):
        if index == 7:
            signal.raise_signal(signal.SIGTERM)
        return plain_step(self, index, *rest)

    def log(self, values):
        if values["step"] == 8 and "val_loss" in values:
            if stopped == "after":
                plain_log(self, values)
            raise KeyboardInterrupt
        plain_log(self, values)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "step", step)
        assert invoke(*arguments(folder, out, validate_every=4)).exit_code == 143
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "log", log)
        assert invoke("train", "--resume", out).exit_code == 1
    assert RunFolder(out).last_step() == 8
    assert invoke("train", "--resume", out).exit_code == 0
    assert_same_bits(tmp_path / "straight", out)


def test_a_signal_during_validation_saves_right_after_it(folder, tmp_path, monkeypatch):
    plain = TransformerTask.validate

    def validate(self):
        signal.raise_signal(signal.SIGTERM)
        return plain(self)

    monkeypatch.setattr(TransformerTask, "validate", validate)
    result = invoke(*arguments(folder, tmp_path / "run", validate_every=4, sample_every=4))
    assert result.exit_code == 143
    assert "SIGTERM after step 4" in result.output


def test_a_signal_during_an_evaluation_saves_right_after_it(folder, tmp_path, monkeypatch):
    plain = HeldOutDistance.measure

    def measure(self, model):
        signal.raise_signal(signal.SIGTERM)
        return plain(self, model)

    monkeypatch.setattr(HeldOutDistance, "measure", measure)
    options = dict(evaluate_every=4, evaluate_features="pixels", sample_every=4)
    result = invoke(*arguments(folder, tmp_path / "run", **options))
    assert result.exit_code == 143
    assert "SIGTERM after step 4" in result.output
    assert "fd" in losses(tmp_path / "run")[-1]
    assert not (tmp_path / "run" / "samples").exists()


def test_no_memory_for_samples_does_not_end_the_run(folder, tmp_path, monkeypatch, caplog):
    def sample(self, model):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TransformerTask, "sample", sample)
    assert invoke(*arguments(folder, tmp_path / "run", sample_every=4)).exit_code == 0
    assert "no samples of step 4" in caplog.text
    assert not list((tmp_path / "run").glob("samples/*.png"))


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX")
def test_a_full_disk(folder, tmp_path):
    """A real failure to write: the process may make no file larger than the first checkpoint's optimizer
    state.
    """
    import resource

    straight = tmp_path / "straight"
    assert invoke(*arguments(folder, straight, save_every=4)).exit_code == 0
    out = tmp_path / "run"
    assert invoke(*arguments(folder, out, save_every=4, steps=12, keep=9)).exit_code == 0
    for step in ("step-000008", "step-000012"):
        for file in (out / "checkpoints" / step).iterdir():
            file.unlink()
        (out / "checkpoints" / step).rmdir()
    limit = 60_000  # bytes; the optimizer's state has more

    def resume():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        run("train", "--resume", out)

    process = Forked(resume, tmp_path / "printed.txt")
    output = process.communicate()
    assert process.returncode == 1, output
    said = output.strip().splitlines()[-1]
    assert said.startswith("Error: the checkpoint of step 8")
    assert "File too large" in said
    assert "the checkpoint of step 4 is intact; free some space and continue with --resume" in said
    assert RunFolder(out).last_step() == 4
    assert not list(out.rglob(".writing-*"))
    assert invoke("train", "--resume", out).exit_code == 0
    assert losses(straight) == losses(out)


def test_other_data(folder, tmp_path):
    make_data(tmp_path)
    options = dict(vqvae=folder / "vae", data=tmp_path / "data")
    out = tmp_path / "run"
    assert invoke(*arguments(folder, out, **options)).exit_code == 0
    source, added = tmp_path / "data" / "bee" / "3.png", tmp_path / "data" / "bee" / "new.png"
    kept = source.read_bytes()
    Image.new("RGB", (16, 16), "red").save(source)
    result = invoke("train", "--resume", out)
    assert result.exit_code == 1
    assert f"what {out} trains on has changed since it began (data_fingerprint)" in result.output
    source.write_bytes(kept)
    for index in range(4):
        added.with_stem(f"new{index}").write_bytes(kept)
    assert (
        "trains on has changed since it began (data_fingerprint)" in invoke("train", "--resume", out).output
    )
    shutil.rmtree(out / "tokens")
    assert "the run had 12 training examples, now there are 15" in (
        output := invoke("train", "--resume", out).output
    ), output
    shutil.rmtree(out / "tokens")
    for index in range(4):
        added.with_stem(f"new{index}").unlink()
    assert invoke("train", "--resume", out).exit_code == 0


def test_gradients_that_are_not_finite(folder, tmp_path, monkeypatch):
    """The loss may be finite when a gradient is not; the step is not taken."""
    plain = Loop.gradients

    def poisoned(self, index):
        result = plain(self, index)
        if index == 5:
            next(self.task.model.parameters()).grad.fill_(float("inf"))
        return result

    monkeypatch.setattr(Loop, "gradients", poisoned)
    result = invoke(*arguments(folder, tmp_path / "run", save_every=2))
    assert result.exit_code == 1
    assert "gradient norm of step 6 is inf" in result.output
    assert "step 4 is intact" in result.output
    assert "Traceback" not in result.output


def test_a_checkpoint_of_another_model(folder, tmp_path):
    out = tmp_path / "run"
    assert invoke(*arguments(folder, out)).exit_code == 0
    config = out / "config.yaml"
    config.write_text(config.read_text().replace("ema: null", "ema: 0.9"))
    result = invoke("train", "--resume", out)
    assert result.exit_code == 1
    assert "average.safetensors" in result.output


def test_a_run_folder_can_be_read(folder, tmp_path):
    """The settings, the versions, the figures, samples, the best and the last models."""
    out = tmp_path / "run"
    result = invoke(
        *arguments(
            folder,
            out,
            steps=8,
            save_every=2,
            validate_every=2,
            sample_every=4,
            tensorboard=True,
            ema=0.9,
            keep=3,
        )
    )
    assert result.exit_code == 0, result.output
    assert "batch_size: 6" in (out / "config.yaml").read_text()
    (start_record,) = json.loads((out / "environment.json").read_text())
    assert start_record["torch"] == torch.__version__
    assert start_record["processes"] == 1
    assert start_record["step"] == 0
    steps = [line for line in RunFolder(out).metrics() if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 9))
    assert all(line["images_per_second"] > 0 and line["lr"] > 0 for line in steps)
    assert all(0.05 < line["memory_gb"] < 50 for line in steps) or sys.platform == "win32"
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == [
        "step-000004",
        "step-000006",
        "step-000008",
    ]
    assert sorted(path.name for path in (out / "samples").iterdir()) == ["step-000004.png", "step-000008.png"]
    with Image.open(out / "samples" / "step-000008.png") as image:
        assert image.size == (6 * 18 - 2, 2 * 18 - 2)
    validations = {line["step"]: line["val_loss"] for line in RunFolder(out).metrics() if "val_loss" in line}
    progress = json.loads((out / "checkpoints" / "step-000008" / "progress.json").read_text())
    assert progress["best"] == min(validations.values())
    average, last = weights(out), read_state(out / "checkpoints" / "step-000008" / "average.safetensors")
    assert all(torch.equal(average[name], last[name]) for name in average), (
        "with --ema the saved model is the average"
    )
    assert MVAR.from_pretrained(out / "best").config.class_names == ("ant", "bee")

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss")] == list(range(1, 9))
    assert board.Tags()["images"] == ["samples"]
    assert board.Scalars("val_loss")[-1].value == pytest.approx(validations[8])
