"""What every subcommand shares: which errors are the user's, and how they are shown."""

from __future__ import annotations

import os

import click
import torch
from safetensors import SafetensorError

from mvar_models.devices import checked_device, default_device
from mvar_models.training.processes import Processes
from mvar_models.training.signals import RunStopped

_EXPECTED = (RunStopped, ValueError, TypeError, OSError, SafetensorError, FloatingPointError, ImportError)


def in_one_line(error: Exception) -> Exception:
    """Return what to raise for an error of a subcommand.

    An error that the user can act on becomes one line, with exit code 1 or the error's own `exit_code`. Any
    other error is a bug, or click's own, and is returned unchanged.
    """
    if not isinstance(error, _EXPECTED):
        return error
    shown = click.ClickException(" ".join(str(error).split()))
    # Typed as the class's alone, but click reads it from the instance.
    shown.exit_code = getattr(error, "exit_code", shown.exit_code)  # type: ignore[misc]
    return shown


def processes_here(device: str | None) -> Processes:
    """Return rank, world size and device of this process, as torchrun sets them."""
    world_size, place = int(os.environ.get("WORLD_SIZE", 1)), checked_device(device or default_device())
    if place.type == "cuda" and world_size > 1:
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return Processes(int(os.environ.get("RANK", 0)), world_size, place)
