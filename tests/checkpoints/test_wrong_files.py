"""Damaged and wrong files: one line names the file, and what it seems to be or what to do."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from mvar_models import MVAR, VAR, VQVAE, VARConfig
from mvar_models.checkpoints.official import to_official

from tiny_models import tiny_mvar, tiny_var, tiny_vqvae

HTML = b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1240000000\n"


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


def rename(old, new):
    return lambda state: state.update({new: state.pop(old)})


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
    "another model": (
        VAR,
        torch_file({"conv1.weight": torch.zeros(3, 3)}),
        r"its tensors are not those of a released model .*VQVAE, VAR, MVAR",
    ),
    "safetensors without config": (VAR, lambda folder: _alone(folder), "has no config.json"),
    "VQVAE for a transformer": (
        VAR,
        torch_file(lambda: to_official(tiny_vqvae(), tiny_vqvae().config)),
        "a VQVAE, not a transformer",
    ),
    "transformer for a VQVAE": (VQVAE, torch_file(official), "not a VQVAE"),
    "MVAR for a VAR": (VAR, saved(model=tiny_mvar), "describes a 'mvar' model, expected 'var'"),
    "VAR for an MVAR": (MVAR, saved(), "describes a 'var' model, expected 'mvar'"),
    "other depth": (
        VAR,
        saved(config={"depth": 3}),
        "seems to be a VAR or MVAR of depth 2; you asked for a VAR of depth 3",
    ),
    "other width": (VAR, saved(config={"width": 64}), "the file belongs to a model of another size"),
    "a tensor is missing": (VAR, saved(change=lambda state: state.pop("head.weight")), "1 entries missing"),
    "a tensor too many": (
        VAR,
        saved(change=lambda state: state.update(extra=torch.zeros(2))),
        "1 unexpected .extra",
    ),
    "a tensor renamed": (
        VAR,
        saved(change=rename("head.weight", "lm_head.weight")),
        "1 entries missing .head.weight.*lm_head.weight",
    ),
    "official block missing": (
        VAR,
        official_with(lambda state: state.pop("blocks.0.attn.proj.weight")),
        "missing|no blocks.0",
    ),
    "unknown setting": (VAR, saved(config={"colour": "red"}), "colour"),
    "impossible setting": (VAR, saved(config={"num_heads": 5}), "num_heads"),
}


def _alone(folder):
    saved()(folder)
    (folder / "saved" / "config.json").unlink()
    return folder / "saved"


@pytest.mark.parametrize("case", CASES)
def test_one_line_tells(case, tmp_path):
    cls, make, message = CASES[case]
    path = make(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        cls.from_pretrained(path)
    said = str(error.value)
    assert "\n" not in said and len(said) < 600 and (str(tmp_path) in said), said
