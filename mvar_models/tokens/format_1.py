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

    def __init__(
        self, files: Sequence[Path], counts: Sequence[int], shape: tuple[int, int], indices: np.ndarray
    ) -> None:
        super().__init__(files, counts, shape, indices)
        self._slices: dict[int, Any] = {}

    def _read(self, shard: int, variants: np.ndarray, rows: np.ndarray) -> np.ndarray:
        if shard not in self._slices:
            with damage_named(self._files[shard], "no shard of codes, or is damaged"):
                self._slices[shard] = safe_open(self._files[shard], framework="numpy").get_slice("codes")
        codes = self._slices[shard]
        return np.concatenate(
            [codes[variant, row : row + 1] for variant, row in zip(variants.tolist(), rows.tolist())]
        )
