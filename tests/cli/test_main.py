"""The group: rows that resolve, help without torch, errors in one line."""

import subprocess
import sys
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner
from safetensors import SafetensorError

import mvar_models
from mvar_kernels import __version__
from mvar_models.cli import COMMANDS, Row
from mvar_models.cli.main import main
from mvar_models.distributed import RunStopped


def run(*arguments):
    return CliRunner().invoke(main, list(arguments))


def fresh(code):
    """What a new Python process prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def failing(monkeypatch):
    """Add a command that raises `failing.error`."""
    given = SimpleNamespace(error=None)

    @click.command()
    def command():
        raise given.error

    monkeypatch.setitem(sys.modules, "toy_failing", SimpleNamespace(command=command))
    monkeypatch.setitem(COMMANDS, "failing", Row("toy_failing:command", "Fail."))
    return given


@pytest.mark.parametrize("name", COMMANDS)
def test_every_row_is_a_command_with_help(name):
    result = run(name, "--help")
    assert result.exit_code == 0, result.output
    assert f"Usage: main {name}" in result.output


def test_the_group_lists_every_row():
    result = run("--help")
    assert result.exit_code == 0
    for name, row in COMMANDS.items():
        assert name in result.output
        assert row.summary in result.output


def test_help_does_not_wait_for_torch():
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from mvar_models.cli.main import main\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0\n"
        "print(sorted({'torch', 'numpy', 'huggingface_hub', 'tqdm'} & set(sys.modules)))"
    )
    assert fresh(code) == "[]"


@pytest.mark.parametrize("name", mvar_models.__all__)
def test_a_name_of_the_package_is_found_on_first_use(name):
    assert name in dir(mvar_models)
    assert getattr(mvar_models, name) is mvar_models.__dict__[name]


def test_a_name_that_the_package_lacks_is_an_attribute_error():
    with pytest.raises(AttributeError, match="MVARS"):
        mvar_models.MVARS  # noqa: B018


def test_version():
    assert run("--version").output == f"mvar, version {__version__}\n"


def test_python_m_is_the_command():
    command = [sys.executable, "-m", "mvar_models", "models", "vae-digits"]
    assert "vae-digits" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_an_unknown_command_is_a_usage_error():
    result = run("sampel")
    assert result.exit_code == 2
    assert "sampel" in result.output


@pytest.mark.parametrize(
    "error, code",
    [
        (ValueError("a\n  b"), 1),
        (OSError(28, "full"), 1),
        (SafetensorError("full"), 1),
        (ImportError("absent"), 1),
        (RunStopped("a b", exit_code=143), 143),
    ],
)
def test_an_error_of_the_user_is_one_line(error, code, failing):
    failing.error = error
    result = run("failing")
    assert result.exit_code == code
    assert result.output == f"Error: {' '.join(str(error).split())}\n"


def test_a_bug_keeps_its_traceback(failing):
    failing.error = KeyError("a bug")
    result = run("failing")
    assert result.exception is failing.error
    names = []
    step = result.exception.__traceback__
    while step is not None:
        names.append(step.tb_frame.f_code.co_name)
        step = step.tb_next
    assert names[-1] == "command"
