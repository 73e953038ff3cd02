"""Runs of the real command on a few synthetic images, in this process or in one of their own."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner
from PIL import Image

from mvar_models.checkpoints.tensor_files import read_state
from mvar_models.cli.main import main
from mvar_models.training.run_folder import RunFolder

from tiny_models import tiny_vqvae

ROOT = Path(__file__).parents[2]
PYTHON = [sys.executable]
COMMAND = ["-m", "mvar_models"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def make_data(folder, per_class=8):
    """Write images of two classes, and the VQVAE that encodes them."""
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (folder / "data" / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = rng.integers(64, 192, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "data" / name / f"{index}.png")
    vqvae = tiny_vqvae()
    with torch.no_grad():  # all but grey, which is 17 dB for these images
        vqvae.decoder.conv_out.weight.mul_(0.1)
        vqvae.decoder.conv_out.bias.zero_()
    vqvae.save_pretrained(folder / "vae")
    return folder


def arguments(folder, out, **options):
    """Return the arguments of a small training run; options by their Python names, None leaves one out."""
    given = dict(
        arch="mvar", depth=2, width=32, num_heads=2, kernel_size=3, dense_scales=2,
        drop_path=0.2, label_drop=0.2, lr=1e-2,
        data=folder / "data", vqvae=folder / "vae", out=folder / out, steps=12, batch_size=6, device="cpu",
    )  # fmt: skip
    listed = ["train"]
    for name, value in {**given, **options}.items():
        flag = "--" + name.replace("_", "-")
        listed += [flag] if value is True else [] if value is None else [flag, str(value)]
    return listed


def invoke(*parts):
    """Run the command in this process."""
    return CliRunner().invoke(main, [str(part) for part in parts])


def run(*parts):
    """Run the command in this process, and leave it as the command does."""
    main([str(part) for part in parts])


def start(*parts, before=PYTHON, program=COMMAND, variables=None, **options):
    """Start the command in a process of its own."""
    environment = {
        **os.environ,
        **(variables or {}),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")]),
    }
    command = [*before, *program, *map(str, parts)]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        **options,
    )


def succeed(*parts):
    """Run the command in this process, which must end well."""
    result = invoke(*parts)
    assert result.exit_code == 0, f"{result.output} {result.exception}"


def wait_for_step(process, run, step):
    """Wait until the run has logged `step`, or the process has ended."""
    while process.poll() is None:
        file = run / "metrics.jsonl"
        if file.is_file() and file.read_text().count('"lr"') >= step:
            return
        time.sleep(0.002)


def losses(run):
    """Return what was logged, except what depends on the clock or the machine."""
    kept = ("step", "loss", "grad_norm", "lr", "val_loss", "val_loss_per_scale", "fd")
    return [{name: line[name] for name in kept if name in line} for line in RunFolder(run).metrics()]


def weights(run, name="model"):
    return read_state(run / name / "model.safetensors")


def assert_same_bits(first, second):
    assert losses(first) == losses(second)
    for name in ("model", "best"):
        expected, actual = weights(first, name), weights(second, name)
        assert set(expected) == set(actual)
        assert all(torch.equal(expected[key], actual[key]) for key in expected)
