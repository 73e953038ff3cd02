"""Several processes train as one does, with DDP or FSDP, and the loss of one ends the run with a message."""

import os
import re
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mvar_models.checkpoints.tensor_files import read_state
from mvar_models.distributed import RunStopped
from mvar_models.training.parallel import cannot_shard
from mvar_models.training.run_folder import RunFolder

from fork_cases import Forked, finish_pair, fork_pair
from run_cases import COMMAND, TORCHRUN, arguments, invoke, make_data, run, start, wait_for_step
from training_cases import (
    ADVERSARIAL,
    CASES,
    EVALUATED,
    SHARED,
    new_loop,
    new_vqvae_loop,
    save_at_step_2,
    train_all,
)


def skip_where_shards_do_not_run():
    """With torch 2.6, whose fully_shard needs a GPU."""
    reason = cannot_shard(torch.device("cpu"))
    if reason:
        pytest.skip(reason)


@pytest.fixture
def one_process_group():
    """FSDP of one process makes a group in this one."""
    skip_where_shards_do_not_run()
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder in which two processes have trained every case."""
    skip_where_shards_do_not_run()
    out = tmp_path_factory.mktemp("two")
    assert Forked(lambda: save_at_step_2(out / "one_to_two")).wait() == 0
    finish_pair(lambda: train_all(out))
    return out


def assert_same_training(one, two, rel=3e-6, atol=5e-5):
    """Losses of every step, validation and final weights, to the rounding of sums."""
    first, second = one.metrics(), two.metrics()
    assert [line["step"] for line in first] == [line["step"] for line in second]
    for expected, actual in zip(first, second):
        for name in ("loss", "grad_norm", "val_loss", "val_loss_per_scale"):
            if name in expected:
                assert actual[name] == pytest.approx(expected[name], rel=rel), (
                    f"{name} of step {expected['step']}"
                )
    for folder in ("model", "best"):
        expected, actual = (read_state(run.path / folder / "model.safetensors") for run in (one, two))
        assert set(expected) == set(actual)
        for name in expected:
            # Adam divides by the root of squared gradients, which magnifies rounding where a gradient is
            # nearly nothing.
            assert torch.allclose(expected[name], actual[name], atol=atol), (
                f"{name} of {folder}: {(expected[name] - actual[name]).abs().max()}"
            )


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(two_processes, tmp_path, name):
    settings = {
        key: value
        for key, value in CASES[name].items()
        if key not in ("fsdp", "accumulate", "activation_checkpointing")
    }
    loop = new_loop(tmp_path / "one", **settings)
    before = [parameter.detach().clone() for parameter in loop.task.model.parameters()]
    loop.fit()
    moved = max((new - old).abs().max().item() for new, old in zip(loop.task.model.parameters(), before))
    assert moved > 5e-3, "the comparison is empty unless the weights move"
    assert_same_training(loop.folder, RunFolder(two_processes / name))


@pytest.mark.parametrize("name, settings", [("vqvae", {}), ("adversarial", ADVERSARIAL)])
def test_two_processes_train_a_vqvae_as_one(two_processes, tmp_path, name, settings):
    """Also the count of codes' use and the restart of dead codes, which look at the whole batch, and the
    balance of the adversarial loss.
    """
    loop = new_vqvae_loop(tmp_path / "one", **settings)
    loop.fit()
    one, two = loop.folder, RunFolder(two_processes / name)
    for expected, actual in zip(one.metrics(), two.metrics(), strict=True):
        for name in ("loss", "grad_norm", "val_psnr", "codes_used"):
            if name in expected:
                assert actual[name] == pytest.approx(expected[name], rel=1e-4), (
                    f"{name} of step {expected['step']}"
                )
    first, second = (read_state(run.model / "model.safetensors") for run in (one, two))
    assert (first["quantizer.codebook.weight"] - second["quantizer.codebook.weight"]).abs().max() < 1e-3
    assert torch.allclose(first["quantizer.code_usage"], second["quantizer.code_usage"], atol=1e-5)


@pytest.mark.parametrize("name", ["evaluated", "fsdp_evaluated"])
def test_two_processes_measure_the_distance_of_one(two_processes, tmp_path, name):
    """DDP's processes share the images; with FSDP rank 0 draws them all."""
    loop = new_loop(tmp_path / "one", **EVALUATED)
    loop.fit()
    first, second = (
        [line["fd"] for line in run.metrics() if "fd" in line]
        for run in (loop.folder, RunFolder(two_processes / name))
    )
    assert len(first) == 2
    assert second == pytest.approx(first, rel=1e-6)


def test_shards_agree_on_fp16_overflow(two_processes):
    """Steps that overflow are skipped and counted by both processes alike, the scale is halved for each, and
    training goes on.
    """
    lines = [line for line in RunFolder(two_processes / "fp16").metrics() if "loss" in line]
    skipped = [line["step"] for line in lines if line["grad_norm"] is None]
    assert skipped
    assert lines[-1]["skipped_steps"] == len(skipped)
    assert lines[-1]["loss_scale"] == 2.0 ** (16 - len(skipped))
    assert skipped == list(range(1, len(skipped) + 1))
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]


def test_shards_go_on_with_another_number_of_processes(two_processes, tmp_path, one_process_group):
    straight = new_loop(tmp_path / "straight", **SHARED)
    straight.fit()
    shards = sorted(
        path.name
        for path in (two_processes / "two_to_one" / "checkpoints" / "step-000002" / "shards").iterdir()
    )
    assert shards == [".metadata", "__0_0.distcp", "__1_0.distcp"]
    resumed = new_loop(two_processes / "two_to_one", **SHARED)
    assert resumed.start == 2
    resumed.fit()
    assert_same_training(straight.folder, resumed.folder)
    assert_same_training(straight.folder, RunFolder(two_processes / "one_to_two"))


def test_one_process_makes_no_group(tmp_path):
    loop = new_loop(tmp_path / "run")
    assert loop.processes.alone
    assert not dist.is_initialized()


def test_an_index_that_would_run_code_is_not_read(tmp_path, one_process_group):
    import pickle

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    save_at_step_2(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-000002" / "shards" / ".metadata").write_bytes(
        pickle.dumps(Evil())
    )
    with pytest.raises(Exception, match=r"asks for (posix|nt)\.mkdir"):
        new_loop(tmp_path / "run", **SHARED)
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_while_writing_shards(tmp_path, one_process_group, monkeypatch):
    """All processes stop with the reason, the last checkpoint is complete, and what was begun is gone."""
    import errno

    import torch.distributed.checkpoint as dcp

    loop = new_loop(tmp_path / "run", **SHARED)
    loop.save_checkpoint(1)

    def fails(self, *args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", fails)
    with pytest.raises(
        RunStopped,
        match=r"checkpoint of step 2 .*No space left.*checkpoint of step 1 is intact",
    ):
        loop.save_checkpoint(2)
    assert loop.folder.last_step() == 1
    assert not list((tmp_path / "run").rglob(".writing-*"))


def pid_of_rank(launcher, rank):
    """The process of torchrun's that has this rank."""
    for child in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"torchrun has no process of rank {rank}")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds torchrun's processes through /proc")
def test_signals_and_a_killed_process(tmp_path):
    """SIGTERM makes all processes save the same step; a killed one of torchrun's ends the run with a clear
    message; both go on.
    """
    folder, printed = make_data(tmp_path), [tmp_path / "0.txt", tmp_path / "1.txt"]
    options = dict(steps=200, save_every=10, validate_every=100)
    straight, out = tmp_path / "straight", tmp_path / "run"
    assert invoke(*arguments(folder, straight, **options)).exit_code == 0

    pair = fork_pair(lambda: run(*arguments(folder, out, **options)), printed)
    wait_for_step(pair[0], out, 15)
    for process in pair:
        process.send_signal(signal.SIGTERM)
    output = "".join(process.communicate() for process in pair)
    stopped = re.findall(
        r"stopped by SIGTERM after step (\d+), which is saved; continue with --resume", output
    )
    assert [process.returncode for process in pair] == [143, 143], output
    assert len(stopped) == 1, output
    reached = int(stopped[0])
    assert 15 <= reached < 200
    assert RunFolder(out).last_step() == reached == RunFolder(out).metrics()[-1]["step"]

    launcher = start("train", "--resume", out, before=[*TORCHRUN, *COMMAND], program=[])
    wait_for_step(launcher, out, reached + 25)
    os.kill(pid_of_rank(launcher, 1), signal.SIGKILL)
    output = launcher.communicate()[0]
    saved = RunFolder(out).last_step()
    assert launcher.returncode != 0, output
    assert reached < saved < 200, output
    lost = re.search(r"rank 0 \(.*\) lost another process of the run.* step (\d+), .*--resume (\S+) ", output)
    assert lost, output
    assert lost.groups() == (str(saved), str(out))
    assert "Traceback (most recent call last)" not in output.split("ChildFailedError")[0].split("elastic")[0]

    assert invoke("train", "--resume", out).exit_code == 0
    assert_same_training(RunFolder(straight), RunFolder(out), rel=5e-5, atol=3e-4)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="stops a process, as a cut cable stops its host")
def test_a_silent_process_is_given_up(tmp_path):
    """The one that waits for it ends with the last checkpoint, and so does the silent one once it is back."""
    folder, out = make_data(tmp_path), tmp_path / "run"
    options = dict(steps=4000, save_every=10, collective_timeout=3)
    printed = [tmp_path / "0.txt", tmp_path / "1.txt"]
    waiting, silent = fork_pair(lambda: run(*arguments(folder, out, **options)), printed)
    wait_for_step(waiting, out, 25)
    silent.send_signal(signal.SIGSTOP)
    output = waiting.communicate()
    saved = RunFolder(out).last_step()
    assert waiting.returncode == 1, output
    assert saved >= 20
    silent.send_signal(signal.SIGCONT)
    other = silent.communicate()
    assert silent.returncode == 1, other
    assert re.search(
        rf"rank 0 .* lost rank 1 .* for 3 s: the last checkpoint is step {saved}, .*--resume {out}", output
    )
    assert re.search(rf"rank 1 .* lost .*the last checkpoint is step {saved}, .*--resume {out}", other)
    assert "Traceback" not in output + other
