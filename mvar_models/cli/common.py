"""Shared by the subcommands: errors in one line, lists, progress, options of settings classes."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from safetensors import SafetensorError

from mvar_models.devices import is_out_of_memory
from mvar_models.distributed import Processes, RunStopped, lost_process
from mvar_models.environment import versions
from mvar_models.sampling.progress import counting, say

_EXPECTED = (RunStopped, ValueError, TypeError, OSError, SafetensorError, FloatingPointError, ImportError)
# A metric of a step, and what the bar calls it.
_SHOWN = {
    "loss": "loss",
    "val_loss": "val_loss",
    "val_psnr": "val_psnr",
    "fd": "fd",
    "skipped_steps": "skipped",
    "images_per_second": "images/s",
    "memory_gb": "GB",
}
# Those of a validation or an evaluation.
_MEASURED = {"val_loss", "val_psnr", "fd"}


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
    *most, last = [remedy for name, remedy in known.items() if name in options] or ["use a machine with more"]
    remedies = f"{', '.join(most)} or {last}" if most else last
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


class CommaList(click.ParamType[tuple[Any, ...]]):
    """Click's type of values separated by commas.

    Args:
        kind: Type of the values: str, int or float.
        be: What an option must be, for its error; needed with `counts`.
        counts: How many values there may be; any number by default.
    """

    name = "text"

    def __init__(self, kind: type[str | int | float], be: str = "", counts: Collection[int] = ()) -> None:
        words = {int: "whole numbers", float: "numbers", str: "names"}
        self._kind = kind
        self._be = be or f"{words[kind]} separated by commas"
        self._counts = counts

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        if isinstance(value, tuple):  # a default
            return value
        try:
            parts = tuple(self._kind(part.strip()) for part in value.split(","))
        except ValueError:
            parts = ()
        if not parts or (self._counts and len(parts) not in self._counts):
            self.fail(f"must be {self._be}, got {value!r}", param, ctx)
        return parts


class OutFile(click.Path):
    """Click's type of a file to write, whose suffix must be one of `suffixes`."""

    def __init__(self, *suffixes: str) -> None:
        super().__init__(path_type=Path, dir_okay=False)
        self._suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if Path(value).suffix.lower() not in self._suffixes:
            self.fail(f"must end in {' or '.join(self._suffixes)}, got {value}", param, ctx)
        return super().convert(value, param, ctx)


@contextmanager
def step_progress(steps: int, done: int = 0) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Count the optimizer steps of a run while open; yields `report(metrics)`, to be called after each step.

    A validation or an evaluation leaves a line with its figures.

    Args:
        steps: Steps of the whole run.
        done: Steps of the checkpoint that it continues from.
    """
    with counting("training", steps, "step", done=done) as meter:

        def report(metrics: dict[str, Any]) -> None:
            figures = {title: f"{metrics[name]:.4g}" for name, title in _SHOWN.items() if name in metrics}
            meter.advance(metrics["step"] - meter.done, figures)
            if figures.keys() & _MEASURED:
                shown = ", ".join(f"{name} {value}" for name, value in figures.items())
                say(f"step {metrics['step']:,} of {steps:,}: {shown}")

        yield report


def require_same_options(processes: Processes) -> None:
    """Raise ValueError in all processes unless all run this command with the same options and versions."""
    given = click.get_current_context().params.items()
    # Devices are numbered per host.
    options = {name: str(value) for name, value in given if name != "device"}
    processes.require_same({**options, **versions()})


F = TypeVar("F", bound=Callable[..., Any])

# Fields without an option, each with the reason.
INTERNAL = {
    "cache_drafters": "a preset that mvar calibrate-cache writes has them",
    "betas": "AdamW's, as released",
    "clip": "as released",
    "num_residual_convolutions": "as released: the released programs load no other number",
    "restart_below": "decides how soon a dead code is replaced, which nobody has wanted to vary",
}


def settings_options(kind: type[Any], *, without: Collection[str] = ()) -> Callable[[F], F]:
    """Return a decorator that adds one option per field of `kind`.

    The value of an option that was not given is None, so that defaults stay with the settings class.

    Args:
        kind: A settings class.
        without: Fields that this command has no option for, besides INTERNAL.
    """
    hints = typing.get_type_hints(kind)
    fields = [field for field in dataclasses.fields(kind) if field.name not in {*INTERNAL, *without}]

    def decorate(command: F) -> F:
        for field in reversed(fields):
            command = _option(field, hints[field.name])(command)
        return command

    return decorate


def flag_of(name: str, kind: type[Any]) -> str:
    """Return the flag of a setting, or of another option of a training command, as in "--batch-size"."""
    flags = {field.name: field.metadata.get("flag") for field in dataclasses.fields(kind)}
    return flags.get(name) or "--" + name.replace("_", "-")


def _option(field: dataclasses.Field[Any], hint: Any) -> Callable[[F], F]:
    flag = field.metadata.get("flag") or "--" + field.name.replace("_", "-")
    kind = _value_type(hint)
    if kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", field.name, default=None, help=_help(field))
    choices = field.metadata.get("choices")
    if choices is not None:
        kind = click.Choice(list(choices() if callable(choices) else choices))
    return click.option(flag, field.name, type=kind, default=None, help=_help(field))


def _value_type(hint: Any) -> Any:
    """Return click's type for an annotation such as `int | None` or `tuple[int, ...]`."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):  # the latter of annotated types
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    return CommaList(int) if typing.get_origin(hint) is tuple else hint


def _help(field: dataclasses.Field[Any]) -> str:
    shown = field.metadata.get("shown")
    if shown is None:
        shown = _written(field.default)
    return f"{field.metadata['help']} Default: {shown}." if shown else field.metadata["help"]


def _written(default: Any) -> str:
    """Return a default as it would be typed; "" for none, and for a switch, which is off."""
    if default is dataclasses.MISSING or default is None or isinstance(default, bool):
        return ""
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default)
