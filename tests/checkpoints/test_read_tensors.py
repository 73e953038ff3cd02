"""Tensors out of files from strangers: nothing runs, wrappers come off, a wrong file is named in one line."""

import argparse
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from mvar_models import MVAR, VAR, VQVAE, MVARPipeline, VARConfig
from mvar_models.checkpoints.checkpoint import open_checkpoint
from mvar_models.checkpoints.official import to_official
from mvar_models.config import SIDES_256
from mvar_models.pipeline import pipeline_for

from checkpoint_cases import (
    official,
    official_file,
    one_line,
    raw,
    refused_in_one_line,
    saved,
    small,
    small_vqvae,
    torch_file,
)

HTML = b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1240000000\n"
CASES = {
    "empty pth": (VAR, raw("a.pth", b""), "is empty; download or copy it again"),
    "empty safetensors": (VAR, saved(weights=lambda path: path.write_bytes(b"")), "is empty"),
    "web page pth": (VAR, raw("a.pth", HTML), "is a web page"),
    "web page safetensors": (VAR, raw("a.safetensors", HTML), "is a web page"),
    "lfs pointer pth": (VAR, raw("a.pth", POINTER), "Git LFS pointer"),
    "lfs pointer safetensors": (
        VAR,
        saved(weights=lambda path: path.write_bytes(POINTER)),
        "Git LFS pointer",
    ),
    "truncated pth": (VAR, torch_file(official, cut=0.6), "is cut short: .* download or copy it again"),
    "truncated safetensors": (
        VAR,
        saved(weights=lambda path: path.write_bytes(path.read_bytes()[:-50])),
        "not a complete safetensors file",
    ),
    "half a safetensors": (
        VAR,
        saved(weights=lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])),
        "not a complete safetensors file",
    ),
    "text": (VAR, raw("a.pth", b"101 to do\n"), "is a text file, not a checkpoint"),
    "random bytes": (VAR, raw("a.pth", bytes(range(256)) * 9), "cannot be read as a PyTorch checkpoint"),
    "plain pickle": (
        VAR,
        raw("a.pth", pickle.dumps(print)),
        "a plain pickle, which cannot be read without running code",
    ),
    "a list": (VAR, torch_file([torch.zeros(2)]), "holds a list, not a state dict"),
    "a tensor": (VAR, torch_file(torch.zeros(2)), "holds a Tensor, not a state dict"),
    "optimizer alone": (
        VAR,
        torch_file({"state": {}, "param_groups": []}),
        "holds an optimizer's state without a model",
    ),
    "counters alone": (
        VAR,
        torch_file({"epoch": 3, "step": 100}),
        "holds no model: its entries are epoch, step",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_file_that_holds_no_weights_is_refused(case, tmp_path):
    cls, make, message = CASES[case]
    refused_in_one_line(cls, make(tmp_path), message)


class _Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (Path(self.target),)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    witness = tmp_path / "ran"
    with (tmp_path / "evil.pth").open("wb") as file:
        pickle.dump({"pos_1LC": _Payload(str(witness))}, file)
    torch.save({"pos_1LC": _Payload(str(witness))}, tmp_path / "evil_zip.pth")
    for name in ("evil.pth", "evil_zip.pth"):
        with pytest.raises(ValueError, match="without running code") as error:
            VAR.from_pretrained(tmp_path / name)
        one_line(error)
    assert not witness.exists()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"mvar_wo_ddp": s, "epoch": 3},
        lambda s: {"trainer": {"var_wo_ddp": s, "config": {}}},
    ],
)
def test_official_files_and_their_wrappers(tmp_path, wrap):
    model = VAR(VARConfig(depth=1, width=64, num_heads=1, num_classes=3, vocab_size=8, z_channels=4))
    state = {f"module._orig_mod.{name}": value for name, value in to_official(model, model.config).items()}
    torch.save(wrap(state), tmp_path / "ar-ckpt.pth")
    for cls in (VAR, MVAR):
        loaded = cls.from_pretrained(tmp_path / "ar-ckpt.pth")
        assert torch.equal(loaded.head.weight, model.head.weight) and loaded.config.num_classes == 3


@pytest.mark.parametrize("legacy", [False, True])
def test_what_the_released_training_programs_write(tmp_path, legacy, caplog):
    """Both networks, optimizer, settings as a Namespace and numpy's numbers in one file.

    Old files are not zip archives.
    """
    mvar, vqvae = small(), small_vqvae()
    values = {
        "epoch": 3,
        "iter": np.int64(12),
        "trainer": {
            "config": {"lr": np.float32(1e-4), "patch_nums": SIDES_256},
            "mvar_wo_ddp": {
                f"module.{name}": value for name, value in to_official(mvar, mvar.config).items()
            },
            "vae_local": to_official(vqvae, vqvae.config),
            "mvar_opt": {
                "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"params": [0]}]}
            },
        },
        "args": argparse.Namespace(depth=1, loss=np.float64(2.5)),
    }
    path = official_file(tmp_path / "ar-ckpt-last.pth", values, _use_new_zipfile_serialization=not legacy)
    assert torch.equal(MVAR.from_pretrained(path).head.weight, mvar.head.weight)
    assert torch.equal(VQVAE.from_pretrained(path).decoder.conv_out.weight, vqvae.decoder.conv_out.weight)
    assert open_checkpoint(path).kind() == "mvar"
    pipeline = pipeline_for(path)
    assert isinstance(pipeline, MVARPipeline) and torch.equal(
        pipeline.vqvae.encoder.conv_in.weight, vqvae.encoder.conv_in.weight
    )
    with caplog.at_level(logging.WARNING):
        VAR.from_pretrained(path)
    assert "was written as mvar and is read as var" in caplog.text
