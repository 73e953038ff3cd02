"""What every subcommand shares: which errors are the user's, and how they are shown."""

from __future__ import annotations

import re
from collections.abc import Sequence

import click
from safetensors import SafetensorError

from mvar_models.devices import is_out_of_memory
from mvar_models.distributed import RunStopped, lost_process

_EXPECTED = (RunStopped, ValueError, TypeError, OSError, SafetensorError, FloatingPointError, ImportError)


def in_one_line(error: Exception, remedy: str = "use a machine with more") -> Exception:
    """Return what to raise for an error of a subcommand.

    An error that the user can act on becomes one line, with exit code 1 or the error's own `exit_code`. Any
    other error is a bug, or click's own, and is returned unchanged.

    Args:
        error: What the subcommand raised.
        remedy: What to do where memory ran out.
    """
    text = " ".join(str(error).split())
    if is_out_of_memory(error) and not isinstance(error, RunStopped | click.ClickException):
        text = f"{_shortage(text)}; {remedy}"
    elif not isinstance(error, _EXPECTED) and not lost_process(error):
        return error
    shown = click.ClickException(text)
    # Typed as the class's alone, but click reads it from the instance.
    shown.exit_code = getattr(error, "exit_code", shown.exit_code)  # type: ignore[misc]
    return shown


def memory_remedy(command: click.Command, arguments: Sequence[str]) -> str:
    """Return what to change in a call of `command` that ran out of memory, among the options that it has."""
    options = {parameter.name for parameter in command.params}
    known = {
        "batch_size": "lower --batch-size",
        "accumulate": "raise --accumulate",
        "activation_checkpointing": "add --activation-checkpointing",
        "dtype": "use --dtype bfloat16",
    }
    if "batch_size" not in options:
        known["n"] = "lower --n"
    found = [remedy for name, remedy in known.items() if name in options] or ["use a machine with more"]
    remedies = f"{', '.join(found[:-1])} or {found[-1]}" if len(found) > 1 else found[0]
    if any(argument.partition("=")[0] == "--resume" for argument in arguments):
        return f"a run keeps its settings, so continue on a machine with more, or start anew and {remedies}"
    return remedies


def _shortage(text: str) -> str:
    place = " of the GPU" if re.search("CUDA|CUBLAS|CUDNN|HIP|MPS|XPU", text) else ""
    asked = re.search(r"allocate ([\d.]+) ?([KMGT]i?B|bytes)", text)
    if asked is None:
        return f"the memory{place} is full"
    amount = f"{int(asked[1]) / 1e9:,.2f} GB" if asked[2] == "bytes" else f"{asked[1]} {asked[2]}"
    return f"the memory{place} is full, {amount} more were needed"
