"""Options of the commands that draw: which checkpoint, and how codes are chosen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from mvar_models.registry import drawing_names
from mvar_models.sampling.sampler import SAMPLERS

F = TypeVar("F", bound=Callable[..., Any])

_CHECKPOINT = (
    click.option("--model", default=None, help="Zoo name, folder, file or Hub id."),
    click.option(
        "--vqvae", default=None, help="Zoo name, folder or file of the VQVAE. Default: the checkpoint's own."
    ),
    click.option(
        "--arch",
        type=click.Choice(drawing_names()),
        default=None,
        help="Architecture of a released .pth that does not say which it is.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "bfloat16", "float16"]),
        default="float32",
        help="Type of the weights.",
    ),
    click.option("--device", default=None, help="Default: cuda if available, else cpu."),
)
_FILTERS = (
    click.option(
        "--preset",
        type=click.Path(path_type=Path, dir_okay=False),
        default=None,
        help="File of guidance scale, top-k and top-p, as mvar sweep writes it. Default: the checkpoint's.",
    ),
    click.option("--guidance-scale", type=float, default=None, help="Default: the checkpoint's."),
    click.option("--top-k", type=int, default=None, help="0 turns it off. Default: the checkpoint's."),
    click.option("--top-p", type=float, default=None, help="0 turns it off. Default: the checkpoint's."),
    click.option(
        "--sampler",
        type=click.Choice(list(SAMPLERS)),
        default=None,
        help="How codes are chosen. Default: ancestral.",
    ),
)


def checkpoint_options(command: F) -> F:
    """Add the options that say which checkpoint draws, where and in which type."""
    return _with(command, _CHECKPOINT)


def filter_options(command: F) -> F:
    """Add the options that say how codes are drawn."""
    return _with(command, _FILTERS)


def _with(command: F, options: tuple[Callable[[Any], Any], ...]) -> F:
    # The last decorator comes first in the help.
    for option in reversed(options):
        command = option(command)
    return command
