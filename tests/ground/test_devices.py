"""Devices by name, and batches that fit a budget."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mvar_models import MVAR, MVARPipeline
from mvar_models.cli.main import main
from mvar_models.devices import checked_device, default_device, fit_batch
from mvar_models.evaluation import evaluate
from mvar_models.evaluation.features.network import feature_network
from mvar_models.pipeline import pipeline_for
from mvar_models.training.runs import start_transformer_run, start_vqvae_run


@pytest.fixture
def gpus(monkeypatch):
    """Let torch see that many GPUs."""

    def see(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return see


def test_what_the_machine_has(gpus):
    gpus(2)
    assert checked_device(None) == torch.device("cpu")
    assert checked_device("cuda:1") == torch.device("cuda:1")
    assert checked_device(torch.device("cuda")) == torch.device("cuda")
    assert checked_device(0) == checked_device("0") == torch.device("cuda:0")
    assert default_device() == "cuda"
    gpus(0)
    assert default_device() == "cpu"


@pytest.mark.parametrize(
    "count, device, match",
    [
        (0, "cuda", r"'cuda'.*'cpu'"),
        (0, 0, r"'0'.*'cpu'"),
        (0, "0", r"'0'.*'cpu'"),
        (2, 2, r"'2'.*cuda:0.*cuda:1"),
        (2, "cuda:2", r"'cuda:2'.*cuda:0.*cuda:1"),
        (2, 256, r"'256'.*cuda:0.*cuda:1"),  # torch makes the first GPU of it
        (2, "cuda:256", r"'cuda:256'.*cuda:0.*cuda:1"),
        (2, -1, "-1"),
        (2, "", "''"),
        (2, 1.5, "1.5"),
        (2, [0], r"\[0\]"),
        (2, True, "True"),
        (2, "gpu", "'gpu'"),
        *((0, name, f"'{name}'.*'cpu'") for name in ("xpu", "xpu:0", "hpu", "meta", "xla", "mtia", "ipu")),
    ],
)
def test_what_it_lacks_is_named_in_one_line(gpus, count, device, match):
    gpus(count)
    with pytest.raises(ValueError, match=match) as error:
        checked_device(device)
    assert "\n" not in str(error.value)


def test_an_absent_apple_gpu(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"'mps'.*'cpu'"):
        checked_device("mps")


def a_loaded_pipeline(device):
    return MVARPipeline.from_pretrained("mvar-digits").to(device)


TAKERS = {
    "network": lambda device: MVAR.from_pretrained("mvar-digits", device=device),
    "pipeline": lambda device: MVARPipeline.from_pretrained("mvar-digits", device=device),
    "pipeline_for": lambda device: pipeline_for("mvar-digits", device=device),
    "to": a_loaded_pipeline,
    "to(device=)": lambda device: MVARPipeline.from_pretrained("mvar-digits").to(device=device),
    "features": lambda device: feature_network("pixels", device=device),
    "evaluate": lambda device: evaluate(
        np.zeros((4, 8, 8, 3), np.uint8), np.zeros((4, 8, 8, 3), np.uint8), features="pixels", device=device
    ),
    "training": lambda device: start_transformer_run(data="digits", out="unused", steps=1, device=device),
    "VQVAE training": lambda device: start_vqvae_run(data="digits", out="unused", steps=1, device=device),
    **{
        name: lambda device, line=line: run_command([*line.split(), "--device", str(device)])
        for name, line in {
            "mvar sample": "sample --model mvar-digits --labels 3 --out unused",
            "mvar evaluate": "evaluate digits@held-out --reference digits@train --features pixels",
            "mvar train": "train --arch mvar --data digits --steps 1 --out unused",
            "mvar tokenize": "tokenize --data digits --vqvae vae-digits --out unused",
        }.items()
    },
}


def run_command(line):
    done = CliRunner().invoke(main, line)
    assert done.exit_code == 1 and len(done.output.splitlines()) == 1, done.output
    raise ValueError(done.output)


@pytest.mark.parametrize("device", [0, "0", 3, "xpu", "meta"])
@pytest.mark.parametrize("taker", TAKERS)
def test_every_taker_of_a_device_refuses_one_that_is_not_there(gpus, tmp_path, monkeypatch, taker, device):
    gpus(0)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"device '{device}' is not available"):
        TAKERS[taker](device)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "budget, per_image, most, expected",
    [(100, 30, None, 3), (90, 30, None, 3), (10, 30, None, 1), (100, 30, 2, 2), (10, 30, 2, 1)],
)
def test_a_batch_fills_the_budget(budget, per_image, most, expected):
    assert fit_batch(budget, per_image, most) == expected
