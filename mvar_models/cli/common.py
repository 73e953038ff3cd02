"""What every subcommand shares: which errors are the user's, and how they are shown."""

from __future__ import annotations

import click
from safetensors import SafetensorError

from mvar_models.distributed import RunStopped, lost_process

_EXPECTED = (RunStopped, ValueError, TypeError, OSError, SafetensorError, FloatingPointError, ImportError)


def in_one_line(error: Exception) -> Exception:
    """Return what to raise for an error of a subcommand.

    An error that the user can act on becomes one line, with exit code 1 or the error's own `exit_code`. Any
    other error is a bug, or click's own, and is returned unchanged.
    """
    if not isinstance(error, _EXPECTED) and not lost_process(error):
        return error
    shown = click.ClickException(" ".join(str(error).split()))
    # Typed as the class's alone, but click reads it from the instance.
    shown.exit_code = getattr(error, "exit_code", shown.exit_code)  # type: ignore[misc]
    return shown
