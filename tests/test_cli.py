"""The command line: what it prints, what it writes, and one clear line for what it cannot do."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mvar_models.cli import main


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("command", ["models", "sample", "train", "finetune", "train-vqvae", "doctor", "demo"])
def test_help(command):
    result = invoke(command, "--help")
    assert result.exit_code == 0 and "Usage" in result.output


def test_models():
    result = invoke("models", "mvar-d*")
    assert result.exit_code == 0
    assert "mvar-d16" in result.output and "CVLUESTC/MVAR/mvar-d16.pth" in result.output and "var-d30" not in result.output


def test_sample_writes_pictures_and_how_to_draw_them_again(tmp_path):
    from mvar_models import MVARPipeline

    result = invoke("sample", "--model", "mvar-digits", "--labels", "7,three", "--n", 2, "--seed", 5, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert [picture["name"] for picture in record["pictures"]] == ["seven", "seven", "three", "three"]
    third = record["pictures"][2]
    again = MVARPipeline.from_pretrained("mvar-digits")([third["label"]], seed=third["seed"], output_type="np")[0]
    assert np.array_equal(np.array(Image.open(tmp_path / "out" / third["file"])), again)
    assert Image.open(tmp_path / "out" / "grid.png").size == (66, 66)


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["sample", "--model", "mvar-digits", "--labels", "ten"], 1, "unknown label 'ten'"),
        (["sample", "--model", "mvar-digits", "--top-k", "-3"], 1, "top_k must be 0 (off) or a positive number of codes, got -3"),
        (["sample", "--model", "nowhere"], 1, "no model of that name in the zoo"),
        (["finetune", "--data", "digits", "--out", "x", "--steps", "1"], 2, "--model is missing"),
        (["train", "--data", "digits", "--out", "x"], 2, "give one of --steps and --epochs"),
        (["train", "--resume", "x", "--lr", "1"], 2, "leave out --lr"),
        (["train", "--resume", "nowhere"], 1, "holds no run"),
        (["train-vqvae", "--data", "digits", "--out", "x", "--steps", "1", "--sides", "1,b"], 2, "whole numbers separated by commas"),
    ],
)
def test_wrong_input_is_one_line(arguments, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == code and message in result.output
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir()), "nothing should be written"


def test_train_and_resume(tmp_path):
    out = tmp_path / "vae"
    options = ["--steps", 2, "--batch-size", 4, "--channels", 32, "--vocab-size", 16, "--z-channels", 4, "--sides", "1,2,8"]
    result = invoke("train-vqvae", "--data", "digits", "--out", out, *options)
    assert result.exit_code == 0, result.output
    assert "held-out PSNR" in result.output and (out / "model" / "model.safetensors").is_file()
    again = invoke("train-vqvae", "--resume", out)
    assert again.exit_code == 0, again.output
