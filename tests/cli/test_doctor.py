"""`mvar doctor`: the kernels' self-check and the embedded models, in one exit code."""

import pytest

from mvar_kernels import selfcheck
from mvar_models.pipeline import MVARPipeline

from command_cases import mvar


def test_it_checks_the_kernels_and_draws_from_the_embedded_model():
    result = mvar("doctor")
    assert result.exit_code == 0
    assert "tiled" in result.output
    assert "embedded models" in result.output


@pytest.mark.parametrize("code", [0, 1])
def test_its_exit_code_is_that_of_the_self_check(monkeypatch, code):
    monkeypatch.setattr(selfcheck, "main", lambda: code)
    assert mvar("doctor").exit_code == code


def test_weights_that_do_not_load_are_a_failure(monkeypatch):
    def fails(name):
        raise ValueError(name)

    monkeypatch.setattr(selfcheck, "main", lambda: 0)
    monkeypatch.setattr(MVARPipeline, "from_pretrained", fails)
    assert mvar("doctor").exit_code == 1
