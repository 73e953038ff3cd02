"""The group `mvar`, whose subcommands are the rows of COMMANDS (`python -m mvar_models` is the same)."""

from __future__ import annotations

import difflib
import logging
import warnings
from typing import Any

import click

from mvar_models.cli import COMMANDS
from mvar_models.registry import resolve

# Where the context keeps the subcommand and its arguments.
_CALLED = f"{__name__}.called"


class _LazyGroup(click.Group):
    """A group that imports a subcommand's file when the subcommand is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = resolve(COMMANDS[cmd_name].target)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # click would import every command to ask for its summary.
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].summary) for name in self.list_commands(ctx)])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and (close := difflib.get_close_matches(args[0], COMMANDS)):
            ctx.fail(f"no command {args[0]!r}; did you mean {' or '.join(close)}?")
        name, command, rest = super().resolve_command(ctx, args)
        ctx.meta[_CALLED] = command, tuple(rest)
        return name, command, rest

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            # Imported after the fact: `mvar --help` needs no torch, and a command that failed has loaded it.
            from mvar_models.cli.common import in_one_line, memory_remedy

            called = ctx.meta.get(_CALLED)
            raise (in_one_line(error, memory_remedy(*called)) if called else in_one_line(error)) from None


def _show_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from mvar_kernels import __version__

        click.echo(f"mvar, version {__version__}")
        ctx.exit()


@click.group(cls=_LazyGroup, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
@click.pass_context
def main(context: click.Context) -> None:
    """VAR and MVAR: sample, train, fine-tune."""
    from mvar_models.sampling.progress import showing  # tqdm, which `mvar --help` does not wait for

    context.with_resource(showing())
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    # Which model of a run folder was taken.
    logging.getLogger("mvar_models.checkpoints").setLevel(logging.INFO)
    # Pillow warns from half the size on that it refuses; what is refused is named, and the rest is wanted.
    warnings.filterwarnings("ignore", message="Image size .* could be decompression bomb")
