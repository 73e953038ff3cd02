"""The examples run as they stand, in seconds and without a network, and stay short enough to read at once."""

import os
import runpy
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.torch_version import TorchVersion

from fork_cases import Forked
from pages import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(folder, name, *options):
    """Run the example in `folder`, in a fork; return what it prints."""

    def example():
        os.chdir(folder)
        sys.argv = [name, *options]
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")

    process = Forked(example, folder / "printed.txt")
    printed = process.communicate()
    assert process.returncode == 0, printed
    return printed


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_under_forty_lines(path):
    assert len(path.read_text().splitlines()) < 40


def test_every_example_is_run_here():
    names = {path.name for path in EXAMPLES}
    assert names == {"sample.py", "finetune_on_a_folder.py", "swap_natten.py", "draw_windows.py"}


def test_sample(tmp_path):
    run(tmp_path, "sample.py", "--labels", "three", "7")
    image = np.asarray(Image.open(tmp_path / "samples.png"))
    # Two rows of six scales, 32 px each with gaps of 2; the last scale of a digit has dark and light pixels.
    assert image.shape == (66, 202, 3)
    assert np.ptp(image[:32, -32:].astype(int)) > 100


def test_finetune_on_a_folder(tmp_path):
    out = run(tmp_path, "finetune_on_a_folder.py", "--steps", "2")
    assert "across, down" in out
    assert (tmp_path / "runs" / "example" / "model" / "model.safetensors").is_file()
    assert Image.open(tmp_path / "runs" / "example" / "sample.png").size == (32, 32)


@pytest.mark.skipif(torch.__version__ < TorchVersion("2.7"), reason="NATTEN has no CPU path before 2.7")
def test_swap_natten(tmp_path):
    assert "largest difference" in run(tmp_path, "swap_natten.py")


def test_draw_windows(tmp_path):
    run(tmp_path, "draw_windows.py", "--sides", "2", "8", "--dense-scales", "1", "--kernel-size", "3")
    mask = np.asarray(Image.open(tmp_path / "windows.png")) > 0
    assert mask.shape == (68, 68)
    assert mask.sum() == 4 * 4 + 64 * 9


def test_draw_the_window_of_one_query(tmp_path):
    options = ["--sides", "8", "--dense-scales", "0", "--kernel-size", "3"]
    run(tmp_path, "draw_windows.py", *options, "--query", "0")
    window = np.asarray(Image.open(tmp_path / "windows.png"))[::16, ::16]
    assert window[0, 0] == 255
    assert (window[:3, :3] > 0).all() and (window > 0).sum() == 9
