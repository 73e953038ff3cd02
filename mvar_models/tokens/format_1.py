"""Reading folders of codes of version 0.1, whose safetensors shards also hold labels and split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from mvar_models.data.arrays import damage_named
from mvar_models.tokens.shard import ShardedCodes

FORMAT_1 = "mvar-tokens-1"


def read_examples(files: Sequence[Path], name: str) -> np.ndarray:
    """Concatenate one of the tensors "examples", "labels" and "held_out", (N,), over all shards."""
    parts = []
    for file in files:
        with (
            damage_named(file, "no shard of codes, or is damaged"),
            safe_open(str(file), framework="numpy") as opened,
        ):
            parts.append(opened.get_tensor(name).reshape(-1))
    return np.concatenate(parts)


class SafetensorsCodes(ShardedCodes):
    """`ShardedCodes` in safetensors files, whose library reads slices: a batch takes about twice as long."""

    def _open(self, shard: int) -> Any:
        with damage_named(self._files[shard], "no shard of codes, or is damaged"):
            return safe_open(self._files[shard], framework="numpy").get_slice("codes")

    def _read(self, opened: Any, variants: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [opened[variant, row : row + 1] for variant, row in zip(variants.tolist(), rows.tolist())]
        )
