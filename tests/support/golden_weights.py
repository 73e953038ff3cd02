"""The golden cases: weights by formula, the input image, and models built from a case's configuration."""

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

from mvar_models import MVAR, VAR, VQVAE, MVARConfig, VARConfig, VQVAEConfig
from mvar_models.checkpoints.official import from_official, to_official

GOLDEN = Path(os.environ.get("MVAR_GOLDEN_DIR", Path(__file__).parents[1] / "golden"))
_LEFT_ALONE = ("attn_bias_for_masking", "zero_k_bias", "ema_vocab_hit_SV")


def case_names():
    """Every case file of the golden folder; `official_state_dicts.json` is a list of names, not a case."""
    return sorted(path.stem for path in GOLDEN.glob("*.json") if path.with_suffix(".safetensors").is_file())


def formula(name, shape, prefix):
    """Value of one official entry, see golden/README.md."""
    x = np.random.RandomState(zlib.crc32((prefix + name).encode())).standard_normal(shape).astype(np.float32)
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


def fill(model, prefix):
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
        self.labels = torch.tensor(self.config["labels"])

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
            shared_adaln=c["shared_aln"],
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

    def image(self):
        side = 16 * self.config["patch_nums"][-1]
        x = np.random.RandomState(self.config["seed"]).uniform(-1, 1, (2, 3, side, side)).astype(np.float32)
        x = torch.from_numpy(x)
        low = F.interpolate(F.avg_pool2d(x, 16), size=(side, side), mode="bilinear", align_corners=False)
        return ((4 * low).clamp(-1, 1) + 0.1 * x).clamp(-1, 1)
