"""Run a command as a user types it."""

import shlex

from click.testing import CliRunner, Result

from mvar_models.cli.main import main


def mvar(text: str, *more: object) -> Result:
    """Run `mvar TEXT MORE...`; text is split at spaces, more is passed as it is."""
    return CliRunner().invoke(main, [*shlex.split(text), *map(str, more)])
