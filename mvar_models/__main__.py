"""`python -m mvar_models` is the `mvar` command."""

from mvar_models.cli.main import main

main(prog_name="mvar")
