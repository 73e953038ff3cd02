"""Which errors of a subcommand become one line, and with which exit code."""

import click
import pytest
from safetensors import SafetensorError

from mvar_models.cli.common import in_one_line
from mvar_models.distributed import RunStopped


@pytest.mark.parametrize(
    "kind", [ValueError, TypeError, OSError, FloatingPointError, ImportError, SafetensorError]
)
def test_an_error_of_the_user_is_one_line_with_code_1(kind):
    shown = in_one_line(kind("first\n  second"))
    assert isinstance(shown, click.ClickException)
    assert shown.message == "first second"
    assert shown.exit_code == 1


def test_an_error_may_bring_its_own_code():
    assert in_one_line(RunStopped("stopped", exit_code=143)).exit_code == 143
    assert in_one_line(ValueError("other")).exit_code == 1, "the code is not kept for the next error"


@pytest.mark.parametrize(
    "error", [AssertionError("bug"), KeyError("bug"), click.UsageError("wrong"), click.Abort()]
)
def test_bugs_and_click_s_own_errors_are_unchanged(error):
    assert in_one_line(error) is error
