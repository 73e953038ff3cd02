"""`python -m mvar_models` is the `mvar` command."""

from mvar_models.cli.main import main

if __name__ == "__main__":  # a process that the command starts imports this file too
    main(prog_name="mvar")
