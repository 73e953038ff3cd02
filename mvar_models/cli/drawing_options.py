"""Options of the commands that draw: which checkpoint, and how codes are chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, cast

import click

from mvar_models.config import TransformerConfig
from mvar_models.records import converted, within
from mvar_models.registry import generator_names
from mvar_models.sampling.guidance import SCHEDULES
from mvar_models.sampling.preset import preset_of, recorded
from mvar_models.sampling.sampler import SAMPLERS

F = TypeVar("F", bound=Callable[..., Any])


def seed_option(help: str) -> Callable[[F], F]:
    """Return the option --seed; from 2^63 on, sums of seeds and numbers of images could be too large."""
    kind = Annotated[int, within(0, 2**63 - 1)]

    def check(context: click.Context, option: click.Parameter, value: int) -> int:
        return cast(int, converted(value, kind, "--seed"))

    return click.option("--seed", default=0, help=help, callback=check)


schedule_option = click.option(
    "--guidance-schedule",
    type=click.Choice(list(SCHEDULES)),
    default=None,
    help="How guidance changes from scale to scale. Default: the checkpoint's.",
)
_CHECKPOINT = (
    click.option("--model", default=None, help="Zoo name, folder, file or Hub id."),
    click.option(
        "--vqvae", default=None, help="Zoo name, folder or file of the VQVAE. Default: the checkpoint's own."
    ),
    click.option(
        "--arch",
        type=click.Choice(generator_names()),
        default=None,
        help="Architecture of a released .pth that does not say which it is.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "bfloat16", "float16"]),
        default="float32",
        help="Type of the model's weights.",
    ),
    click.option("--device", default=None, help="Default: cuda if available, else cpu."),
)
_FILTERS = (
    click.option(
        "--preset",
        type=click.Path(path_type=Path, dir_okay=False),
        default=None,
        help="Guidance, schedule, top-k and top-p in a file of mvar sweep. Default: the checkpoint's.",
    ),
    click.option("--guidance-scale", type=float, default=None, help="Default: the checkpoint's."),
    schedule_option,
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


def filled(
    given: Mapping[str, Any], config: TransformerConfig, preset: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Return arguments of a pipeline's call, for records: what is given, else the preset's, else the
    checkpoint's; see `recorded`.
    """
    known = config.replace(**preset)
    decided = preset_of(given, known).to_dict()
    return recorded({name: decided.get(name, value) for name, value in given.items()}, config)


def _with(command: F, options: tuple[Callable[[Any], Any], ...]) -> F:
    # The last decorator comes first in the help.
    for option in reversed(options):
        command = option(command)
    return command
