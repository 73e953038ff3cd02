"""Figures and samples of a run as they come: metrics.jsonl, samples/, and TensorBoard if enabled."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
import torch
from PIL import Image

from mvar_models.environment import peak_resident_bytes
from mvar_models.files import replacing
from mvar_models.optional import require
from mvar_models.training.run_folder import RunFolder


class Metrics:
    """Writes figures and samples; only rank 0 uses it.

    TensorBoard opens with the first figure, and drops what a resumed run will compute again.

    Args:
        folder: The run folder.
        tensorboard: Also write for TensorBoard.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, folder: RunFolder, *, tensorboard: bool) -> None:
        if tensorboard:
            require("tensorboard", "tensorboard")
        self.folder = folder
        self.tensorboard = tensorboard
        self._writer: Any = None

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def add(self, values: dict[str, Any]) -> None:
        """Write one line. In TensorBoard a list, such as the loss per scale, becomes several curves."""
        self.folder.log(values)
        if not self.tensorboard:
            return
        writer, step = self._open(values["step"]), values["step"]
        for name, value in values.items():
            if isinstance(value, list):
                for index, entry in enumerate(value):
                    writer.add_scalar(f"{name}/{index}", entry, step)
            elif name != "step" and value is not None:
                writer.add_scalar(name, value, step)

    def add_image(self, step: int, image: Image.Image) -> None:
        """Write the samples of `step`."""
        self.folder.samples.mkdir(exist_ok=True)
        with replacing(self.folder.samples_of(step)) as temporary:
            image.save(temporary)
        if self.tensorboard:
            self._open(step).add_image("samples", np.asarray(image), step, dataformats="HWC")

    def _open(self, step: int) -> Any:
        if self._writer is None:
            writer = require("torch.utils.tensorboard", "tensorboard").SummaryWriter
            self._writer = writer(str(self.folder.path / "tensorboard"), purge_step=step)
        return self._writer


def memory_gb(device: torch.device) -> float | None:
    """Return peak memory in 10^9 bytes, or None where the system does not report it.

    On a GPU it is what PyTorch allocated there, on a CPU the resident memory of this process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = peak_resident_bytes()
    return None if peak is None else peak / 1e9


def averaged(found: list[dict[str, float]], sizes: list[int]) -> dict[str, float]:
    """Return figures of micro-batches as those of their whole."""
    return {
        name: first
        if all(figures[name] == first for figures in found)
        else sum(figures[name] * size for figures, size in zip(found, sizes)) / sum(sizes)
        for name, first in found[0].items()
    }
