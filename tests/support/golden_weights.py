"""The golden cases: weights by formula, the input image, models, and comparisons with figures."""

from __future__ import annotations

import json
import math
import os
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from mvar_models import (
    MVAR,
    VAR,
    VQVAE,
    MarkovVAR,
    MarkovVARConfig,
    MVARConfig,
    VARConfig,
    VQVAEConfig,
)
from mvar_models.checkpoints.official import from_official, to_official

GOLDEN = Path(os.environ.get("MVAR_GOLDEN_DIR", Path(__file__).parents[1] / "golden"))
_LEFT_ALONE = ("attn_bias_for_masking", "zero_k_bias", "ema_vocab_hit_SV")


# Cases of other families than VAR and MVAR begin with their family's name.
FAMILIES = ("markov", "lsrs", "scalekv")


def case_names(family=""):
    """Case files of one family in the golden folder; "" is VAR and MVAR, whose cases have no prefix.

    Files without tensors beside them are lists of names, not cases.
    """
    names = sorted(path.stem for path in GOLDEN.glob("*.json") if path.with_suffix(".safetensors").is_file())
    if family:
        return [name for name in names if name.startswith(family)]
    return [name for name in names if not name.startswith(FAMILIES)]


def normal(key, shape):
    """Standard normal numbers that a key decides."""
    x = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    return x.astype(np.float32)


def formula(name, shape, prefix):
    """Value of one official entry, see golden/README.md."""
    x = normal(prefix + name, shape)
    if name.endswith("scale_mul_1H11"):
        x = np.float32(math.log(4)) + np.float32(0.1) * x
    elif len(shape) == 1:
        x = 1 + np.float32(0.1) * x if "norm" in name and name.endswith("weight") else np.float32(0.02) * x
    elif len(shape) == 4:
        x = x / np.float32(np.sqrt(np.prod(shape[1:])))
    else:
        x = x * np.float32(0.5 / np.sqrt(shape[-1]))
    if prefix == "model." and name == "head.weight":
        x = x * 4
    return torch.from_numpy(np.asarray(x, dtype=np.float32))


def markov_formula(name, shape, prefix):
    """Value of one official entry of Markov-VAR."""
    x = normal(prefix + name, shape)
    if name.endswith("scale_mul_1H11"):
        x = np.float32(math.log(4)) + np.float32(0.1) * x
    elif name == "context_pool.ca.mat_q":
        x = 4 * x
    elif len(shape) == 1:
        x = 1 + np.float32(0.1) * x if name.endswith("weight") else np.float32(0.1) * x
    elif name != "class_emb.weight":
        x = x * np.float32(0.5 / np.sqrt(shape[-1]))
    return torch.from_numpy(np.asarray(4 * x if name == "head.weight" else x, dtype=np.float32))


def fill(model, prefix, formula=formula):
    """Give a model of ours the formula's weights, through the official names."""
    state = to_official(model, model.config)
    for name, value in state.items():
        if value.is_floating_point() and not name.endswith(_LEFT_ALONE):
            state[name] = formula(name, tuple(value.shape), prefix)
    model.load_state_dict(from_official(state, model, model.config), strict=True)
    return model.eval()


class Case:
    def __init__(self, name):
        self.figures = json.loads((GOLDEN / f"{name}.json").read_text())
        self.tensors = load_file(GOLDEN / f"{name}.safetensors")
        self.config = self.figures["config"]
        # `stride` is documented beside the configuration's entries; accept it on either level.
        self.stride = self.config.get("stride", self.figures.get("stride", 5))
        self.labels = torch.tensor(self.config.get("labels", ()))

    def vqvae(self):
        c = self.config
        return fill(
            VQVAE(VQVAEConfig(c["vocab_size"], c["z_channels"], c["ch"], sides=c["patch_nums"])), "vae."
        )

    def _shared(self):
        c = self.config
        return dict(
            depth=c["depth"],
            width=c["embed_dim"],
            num_heads=c["num_heads"],
            num_classes=c["num_classes"],
            vocab_size=c["vocab_size"],
            z_channels=c["z_channels"],
            sides=c["patch_nums"],
            shared_adaln=c.get("shared_aln", False),
            cosine_attention=c["attn_l2_norm"],
        )

    def var(self):
        return fill(VAR(VARConfig(**self._shared())), "model.")

    def mvar(self):
        c = self.config
        return fill(
            MVAR(MVARConfig(**self._shared(), kernel_size=c["kernel_size"], dense_scales=c["refine_step"])),
            "model.",
        )

    def markov_var(self):
        return fill(MarkovVAR(MarkovVARConfig(**self._shared())), "markov.", markov_formula)

    def image(self):
        side = 16 * self.config["patch_nums"][-1]
        x = np.random.RandomState(self.config["seed"]).uniform(-1, 1, (2, 3, side, side)).astype(np.float32)
        x = torch.from_numpy(x)
        low = F.interpolate(F.avg_pool2d(x, 16), size=(side, side), mode="bilinear", align_corners=False)
        return ((4 * low).clamp(-1, 1) + 0.1 * x).clamp(-1, 1)


def assert_close_to_largest(actual, expected, tolerance, what):
    """Largest error within `tolerance` of the largest magnitude."""
    assert actual.shape == expected.shape, (
        f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    )
    error = (actual - expected).abs().max().item()
    bound = tolerance * expected.abs().max().item()
    assert error <= bound, f"{what}: largest error {error:.3e}, allowed {bound:.3e}"


def assert_indices_equal(actual, expected, what):
    wrong = (actual != expected).nonzero()
    assert len(wrong) == 0, (
        f"{what}: {len(wrong)} of {expected.numel()} codes differ, the first at {wrong[0].tolist()}"
    )
