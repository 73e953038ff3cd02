"""Checkpoints as people have them are read, and wrong files are refused in one line, without running code."""

import argparse
import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mvar_models import MVAR, VAR, VQVAE, MVARPipeline, VARConfig
from mvar_models.checkpoints.checkpoint import open_checkpoint
from mvar_models.checkpoints.official import to_official
from mvar_models.config import SIDES_256
from mvar_models.pipeline import pipeline_for

from checkpoint_cases import (
    SHARDS,
    official,
    official_file,
    one_line,
    raw,
    refused_in_one_line,
    saved,
    sharded,
    small,
    small_vqvae,
    torch_file,
)
from tiny_models import tiny_mvar

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


def released():
    model = small()
    return to_official(model, model.config)


def prefixed(prefix):
    return {prefix + name: value for name, value in released().items()}


def inside(wrapper, block="blocks.0."):
    return {name.replace(block, block + wrapper): value for name, value in released().items()}


FILES = {
    "DataParallel": lambda: prefixed("module."),
    "compiled DDP": lambda: prefixed("module._orig_mod."),
    "compiled blocks": lambda: inside("_orig_mod."),
    "wrapped twice": lambda: inside("_checkpoint_wrapped_module._orig_mod.module."),
    "checkpointed attention": lambda: inside("_checkpoint_wrapped_module.", "blocks.0.attn."),
    "FSDP": lambda: {
        "_fsdp_wrapped_module." + name: value for name, value in inside("_fsdp_wrapped_module.").items()
    },
    "Lightning": lambda: {"state_dict": prefixed("model."), "hyper_parameters": {"lr": 1e-4}, "loops": {}},
    "Lightning's strategies": lambda: {"state_dict": prefixed("_forward_module.model.")},
    "DeepSpeed": lambda: {"module": released(), "optimizer": None, "global_steps": 3},
    "AveragedModel": lambda: {**prefixed("module."), "n_averaged": torch.tensor(3)},
    "averages alone": lambda: {"ema": released(), "decay": 0.999},
    "numbers beside tensors": lambda: {**released(), "step": 5, "time": torch.tensor(2.0), "name": "mine"},
    "an optimizer beside": lambda: {
        "model": released(),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"params": [0]}]},
        "step": torch.tensor(3),
    },
    "a configuration beside": lambda: {"model": {"depth": 1}, "state_dict": released()},
}


@pytest.mark.parametrize("form", FILES)
def test_one_file(form, tmp_path):
    loaded = MVAR.from_pretrained(official_file(tmp_path / "ckpt.pth", FILES[form]()))
    for name, value in small().state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_the_model_is_taken_before_its_average_and_that_is_said(tmp_path, caplog):
    average = {name: value * 0 for name, value in released().items()}
    path = official_file(tmp_path / "ckpt.pth", {"ema": average, "model": released()})
    with caplog.at_level(logging.WARNING):
        assert torch.equal(MVAR.from_pretrained(path).head.weight, small().head.weight)
    assert "ckpt.pth: took 'model', not the average in 'ema'" in caplog.text


def pickled(folder, suffix=".bin"):
    tiny_mvar().save_pretrained(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / f"pytorch_model{suffix}")
    (folder / "model.safetensors").unlink()
    return folder


FOLDERS = {
    "shards": sharded,
    "the index": lambda folder: sharded(folder) / "model.safetensors.index.json",
    "a .bin in a folder": pickled,
    "the .bin": lambda folder: pickled(folder) / "pytorch_model.bin",
    "a .pth": lambda folder: pickled(folder, ".pth") / "pytorch_model.pth",
}


@pytest.mark.parametrize("form", FOLDERS)
def test_with_its_configuration(form, tmp_path):
    loaded, model = MVAR.from_pretrained(FOLDERS[form](tmp_path)), tiny_mvar()
    assert loaded.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_a_released_file_does_not_take_the_configuration_of_what_lies_beside_it(tmp_path):
    tiny_mvar().save_pretrained(tmp_path)
    path = official_file(tmp_path / "ckpt.pth", released())
    assert MVAR.from_pretrained(path).config.width == small().config.width


def with_index(change):
    def make(folder):
        file = sharded(folder) / "model.safetensors.index.json"
        index = json.loads(file.read_text())
        change(index["weight_map"], folder)
        file.write_text(json.dumps(index))
        return folder

    return make


def torn_apart(folder):
    (folder / "__0_0.distcp").write_bytes(b"shard")
    (folder / ".metadata").write_bytes(b"index")
    return folder


def file_of(values):
    return lambda folder: official_file(folder / "ckpt.pth", values())


REFUSED = {
    "a shard is missing": (
        lambda folder: (sharded(folder) / SHARDS[1]).unlink() or folder,
        f"names {SHARDS[1]}, which is not beside it",
    ),
    "a shard lacks a tensor": (
        with_index(lambda index, _: index.update({"extra": SHARDS[0]})),
        f"{SHARDS[0]} lacks extra",
    ),
    "a tensor in no shard": (
        with_index(lambda index, _: index.pop("head.weight")),
        r"1 entries missing .head\.weight",
    ),
    "an index out of its folder": (
        with_index(lambda index, folder: index.update({"head.weight": f"../{folder.name}/{SHARDS[0]}"})),
        r"weight_map\.head\.weight must be .*name of a file in this folder",
    ),
    "an index without files": (
        with_index(lambda index, _: index.clear() or index.update(a=3)),
        r"weight_map\.a must be text",
    ),
    "a shard by itself": (
        lambda folder: sharded(folder) / SHARDS[0],
        "is a part of a model; name its folder",
    ),
    "a distributed checkpoint": (torn_apart, "distributed checkpoint, of which .*dcp_to_torch"),
    "flattened weights": (
        file_of(lambda: {"_fsdp_wrapped_module._flat_param": torch.zeros(9)}),
        "holds FSDP's flattened weights; save whole ones",
    ),
    "two models in one": (
        file_of(lambda: {**released(), **prefixed("module.")}),
        "twice, once as module",
    ),
    "weights of whole numbers": (
        file_of(lambda: {**released(), "head.weight": released()["head.weight"].to(torch.int8)}),
        r"head\.weight is of int8, expected floating-point",
    ),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_cannot_be_put_together_is_named(form, tmp_path):
    make, message = REFUSED[form]
    (tmp_path / "model").mkdir()
    refused_in_one_line(MVAR, make(tmp_path / "model"), message)
