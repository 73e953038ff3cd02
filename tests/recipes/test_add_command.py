"""A command is one file and one row of COMMANDS; CONTRIBUTING.md gives the recipe."""

from click.testing import CliRunner

from mvar_models.cli import COMMANDS, Row
from mvar_models.cli.main import main

_FILE = '''
import click

@click.command()
@click.option("--name", default="you", help="Whom to greet.")
def greet(name):
    """Greet someone."""
    if name == "nobody":
        raise ValueError("name is nobody's")
    click.echo(f"hello {name}")
'''


def test_a_new_command_is_one_file_and_one_row(tmp_path, monkeypatch):
    (tmp_path / "toy_greet.py").write_text(_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(COMMANDS, "greet", Row("toy_greet:greet", "Greet someone."))
    runner = CliRunner()
    assert "Greet someone." in runner.invoke(main, ["--help"]).output
    assert "Whom to greet." in runner.invoke(main, ["greet", "--help"]).output
    assert runner.invoke(main, ["greet", "--name", "Ada"]).output == "hello Ada\n"
    refused = runner.invoke(main, ["greet", "--name", "nobody"])
    assert refused.exit_code == 1
    assert refused.output == "Error: name is nobody's\n"
