"""What every command shares: errors in one line, the default device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click
from safetensors import SafetensorError

from mvar_models.training.signals import RunStopped

_EXPECTED = (RunStopped, ValueError, TypeError, OSError, SafetensorError, FloatingPointError, ImportError)


def clear_errors(command: Callable[..., None]) -> Callable[..., None]:
    """What a user can mend is one line and exit code 1 (or the error's own); anything else is a bug and keeps its traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except _EXPECTED as error:
            shown = click.ClickException(" ".join(str(error).split()))
            shown.exit_code = getattr(error, "exit_code", shown.exit_code)
            raise shown from None

    return wrapped
