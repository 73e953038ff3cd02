"""Devices by name."""

from __future__ import annotations

import torch


def checked_device(device: torch.device | str | None) -> torch.device:
    """A device by name, the CPU by default; ValueError in one line where torch does not know it or this machine does not have it."""
    try:
        place = torch.device(device or "cpu")
    except RuntimeError as error:
        raise ValueError(
            f"device {device!r} is none that torch knows: {str(error).splitlines()[0]}"
        ) from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device {str(device)!r} is not there: torch {torch.__version__} finds no GPU on this machine; use 'cpu'"
        )
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {str(device)!r} is not there: this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}"
        )
    if place.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(
            f"device {str(device)!r} is not there: torch {torch.__version__} finds no Apple GPU on this machine; use 'cpu'"
        )
    return place


def default_device() -> str:
    """ "cuda" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"
