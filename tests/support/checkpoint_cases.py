"""Checkpoints to load: released layouts at a small size, and files that are damaged or of another kind."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mvar_models import MVAR, VAR, VQVAE, VARConfig, VQVAEConfig
from mvar_models.checkpoints.official import to_official

from tiny_models import tiny_mvar, tiny_var

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

RELEASED_SHAPE = {
    "depth": 1,
    "width": 64,
    "num_heads": 2,
    "num_classes": 1000,
    "vocab_size": 24,
    "z_channels": 4,
}


def small_vqvae():
    """Sixteen-fold, ten scales: the released layout at a small size."""
    torch.manual_seed(1)
    config = VQVAEConfig(vocab_size=24, z_channels=4, channels=32, blocks_per_level=1)
    return VQVAE(config).eval()


def small(kind=MVAR, **changes):
    torch.manual_seed(0)
    return kind(kind.config_class(**{**RELEASED_SHAPE, **changes})).eval()


def official_file(path, values, **options):
    torch.save(values, path, **options)
    return path


def official():
    torch.manual_seed(0)
    model = VAR(VARConfig(depth=2, width=64, num_heads=1, num_classes=3, vocab_size=8, z_channels=4))
    return to_official(model, model.config)


def raw(name, content):
    def make(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return make


def torch_file(values, cut=None):
    def make(folder):
        path = folder / "model.pth"
        torch.save(values() if callable(values) else values, path)
        if cut:
            path.write_bytes(path.read_bytes()[: int(path.stat().st_size * cut)])
        return path

    return make


def official_with(change):
    def values():
        state = official()
        change(state)
        return state

    return torch_file(values)


def saved(change=None, config=None, weights=None, model=tiny_var):
    """A folder of save_pretrained with its tensors, configuration or files changed."""

    def make(folder):
        model().save_pretrained(folder / "saved")
        path = folder / "saved" / "model.safetensors"
        if change:
            state = dict(model().state_dict())
            change(state)
            save_file({name: value.contiguous().clone() for name, value in state.items()}, path)
        if config:
            file = folder / "saved" / "config.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
        if weights is not None:
            weights(path)
        return folder / "saved"

    return make


def sharded(folder):
    """A folder of two shards and their index, as Hugging Face's libraries write it."""
    tiny_mvar().save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = dict(zip(SHARDS, (names[:20], names[20:])))
    for file, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, folder / file)
    index = {key: file for file, keys in parts.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
    )
    return folder


def rename(old, new):
    return lambda state: state.update({new: state.pop(old)})


def one_line(error):
    """The message of an error that was raised, which must be one line of readable length."""
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def refused_in_one_line(cls, path, message):
    """`from_pretrained` refuses the file in one line that names it and matches `message`."""
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        cls.from_pretrained(path)
    assert str(path.parent) in one_line(error)
