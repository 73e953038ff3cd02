"""The `mvar` command, one file a subcommand."""
