"""Devices by name, and how many images to process at a time on them."""

from __future__ import annotations

import torch


def checked_device(device: torch.device | str | None) -> torch.device:
    """Return a device by name; None is the CPU.

    Raises:
        ValueError: torch does not know the name, or this machine does not have the device.
    """
    try:
        place = torch.device(device or "cpu")
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: {str(error).splitlines()[0]}") from None
    missing = f"device {str(device)!r} is not available: "
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{missing}torch {torch.__version__} finds no GPU on this machine; use 'cpu'")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"{missing}this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    if place.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"{missing}torch {torch.__version__} finds no Apple GPU on this machine; use 'cpu'")
    return place


def default_device() -> str:
    """Return "cuda" if torch sees a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def fit_batch(budget: int, per_image: int, most: int | None = None) -> int:
    """Return how many images to process at a time: as many as the budget holds, but at least one.

    Args:
        budget: What the step may hold at once, in whatever unit grows with its memory (pixels, logits,
            tokens).
        per_image: The same of one image.
        most: Largest batch, whatever the budget.
    """
    fitting = max(1, budget // per_image)
    return fitting if most is None else min(fitting, most)
