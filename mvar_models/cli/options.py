"""Click options made from the fields of a settings class, which state type, default and help once."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import click

from mvar_models.cli.common import CommaList

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
