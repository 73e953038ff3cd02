"""What the subcommands share: errors in one line, memory that ran out, progress of steps."""

import errno

import click
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError

from mvar_models.cli import COMMANDS, common
from mvar_models.cli.common import in_one_line, memory_remedy
from mvar_models.devices import is_out_of_memory
from mvar_models.distributed import RunStopped
from mvar_models.registry import resolve

from chosen_cases import some
from command_cases import mvar
from progress_cases import recorded


@pytest.mark.parametrize(
    "kind", [ValueError, TypeError, OSError, FloatingPointError, ImportError, SafetensorError]
)
def test_an_error_of_the_user_is_one_line_with_code_1(kind):
    shown = in_one_line(kind("first\n  second"))
    assert isinstance(shown, click.ClickException)
    assert shown.message == "first second"
    assert shown.exit_code == 1


def test_an_error_may_bring_its_own_code():
    assert in_one_line(RunStopped("stopped", exit_code=143)).exit_code == 143
    assert in_one_line(ValueError("other")).exit_code == 1, "the code is not kept for the next error"


@pytest.mark.parametrize(
    "error", [AssertionError("bug"), KeyError("bug"), click.UsageError("wrong"), click.Abort()]
)
def test_bugs_and_click_s_own_errors_are_unchanged(error):
    assert in_one_line(error) is error


GPU = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.80 GiB of which"
CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
CPU += "you tried to allocate 786432000 bytes. Error code 12 (Cannot allocate memory)"
SHORTAGES = {
    "the memory of the GPU is full, 2.00 GiB more were needed": torch.OutOfMemoryError(GPU),
    "the memory is full, 0.79 GB more were needed": RuntimeError(CPU),
    "the memory of the GPU is full": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"),
    "the memory is full, 1.50 GiB more were needed": MemoryError("Unable to allocate 1.50 GiB for an array"),
    "the memory is full": MemoryError(),
}
OTHERS = (
    RuntimeError("shape mismatch"),
    OSError(errno.ENOSPC, "No space left on device"),
    ValueError("photo.png: out of memory is a strange title"),
)


@pytest.mark.parametrize("text", SHORTAGES)
def test_what_ran_out_and_what_to_lower(text):
    shown = in_one_line(SHORTAGES[text], "lower --batch-size")
    assert isinstance(shown, click.ClickException)
    assert shown.message == f"{text}; lower --batch-size"


def test_which_errors_are_of_memory():
    more = (OSError(errno.ENOMEM, "Cannot allocate memory"), SafetensorError("Cannot allocate memory"))
    assert all(map(is_out_of_memory, (*SHORTAGES.values(), *more)))
    assert not any(map(is_out_of_memory, OTHERS))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_remedy_is_an_option_of_the_command(name):
    command = resolve(COMMANDS[name].target)
    options = {option for parameter in command.params for option in parameter.opts}
    remedy = memory_remedy(command, ())
    named = {word.rstrip(",") for word in remedy.split() if word.startswith("--")}
    assert named <= options and (named or remedy == "use a machine with more")
    assert ("--batch-size" in named) == ("--batch-size" in options)


def test_a_continued_run_keeps_its_settings():
    remedy = memory_remedy(resolve(COMMANDS["train"].target), ("--resume", "run"))
    assert remedy.startswith(
        "a run keeps its settings, so continue on a machine with more, or start anew and"
    )


LINES = {
    "sample": "--model mvar-digits --labels 3 --out out",
    "edit": "--model mvar-digits --image image.png --from-scale 2",
    "gallery": "--model mvar-digits --out out",
    "evaluate": "digits@train --reconstruct vae-digits --reference digits@train --features pixels"
    " --metrics fd --out out",
    "sweep": "--model mvar-digits --reference digits@train --features pixels --out out",
    "tokenize": "--data digits --vqvae vae-digits --out out",
    "train": "--arch mvar --data digits --steps 1 --out out",
    "finetune": "--model var-digits --data digits --steps 1 --out out",
    "train-vqvae": "--data digits --steps 1 --channels 32 --out out",
}


@pytest.mark.parametrize("name", some(LINES, 5))
def test_every_command_says_it_in_one_line(name, tmp_path, monkeypatch):
    """PyTorch's own error: the VQVAE, which all of them run, asks for more than any machine has."""
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(F, "conv2d", lambda *args, **options: torch.empty(1 << 50))
    result = mvar(f"{name} {LINES[name]}")
    assert result.exit_code == 1
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    last = result.output.strip().splitlines()[-1]
    assert last.startswith("Error: the memory is full, 4,503,599.63 GB more were needed; "), result.output
    assert last.endswith(memory_remedy(resolve(COMMANDS[name].target), ()))


def test_a_file_that_is_too_large_for_the_memory_is_not_called_damaged(tmp_path, monkeypatch):
    def load(*args, **options):
        raise RuntimeError("unable to mmap 8000000000 bytes from file <a.pth>: Cannot allocate memory (12)")

    torch.save({"class_emb.weight": torch.zeros(2)}, tmp_path / "a.pth")
    monkeypatch.setattr(torch, "load", load)
    result = mvar("sample --labels 3 --arch var --model", tmp_path / "a.pth", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "the memory is full; lower --batch-size" in result.output
    assert "download" not in result.output


def test_steps_count_from_the_checkpoint_on_and_measurements_leave_a_line(capsys):
    with recorded() as meters, common.step_progress(10, 6) as report:
        report({"step": 7, "loss": 1.23456, "images_per_second": 2.0})
        report({"step": 9, "loss": 0.5, "val_loss": 0.25, "lr": 1.0, "memory_gb": 1.5})
    (meter,) = meters
    assert (meter.title, meter.unit, meter.total, meter.seen) == ("training", "step", 10, [7, 9])
    assert capsys.readouterr().out == "step 9 of 10: loss 0.5, val_loss 0.25, GB 1.5\n"
