"""A model in the forms that other programs leave it in: the same tensors, or one line that is true."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file

from mvar_models import MVAR
from mvar_models.checkpoints.official import to_official

from checkpoint_cases import SHARDS, official_file, refused_in_one_line, sharded, small
from tiny_models import tiny_mvar


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
