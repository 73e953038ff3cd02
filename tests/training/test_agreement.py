"""Processes that do not agree end at once, on every host, with a line that names what differs and where."""

import json

import disagreements
import pytest

from fork_cases import finish_pair


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """What each case ended with, on rank 0 and on rank 1."""
    top = tmp_path_factory.mktemp("pair")
    disagreements.prepare(top)
    finish_pair(lambda: disagreements.walk(top))
    assert not (top / "elsewhere").exists()
    return [json.loads((top / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(
    "kind, name",
    [
        (kind.kind, field.name)
        for kind in disagreements.KINDS
        for field in disagreements.changed_settings(kind)
    ],
)
def test_every_setting_is_compared(ended, kind, name):
    one, two = (lines[f"{kind} {name}"] for lines in ended)
    assert one == two
    assert one.startswith("ValueError: all processes of a run must agree"), one
    assert f"{name} is " in one
    assert "on rank 0 (host0)" in one
    assert "on rank 1 (host1)" in one


@pytest.mark.parametrize(
    "case, named",
    [
        ("another version", "torch is '2.6.0' on rank 0 (host0) and '2.6.1' on rank 1 (host1)"),
        ("other data", "the fingerprint of the data is"),
        ("other vqvae data", "the fingerprint of the data is"),
        ("other vqvae", "the VQVAE is"),
        ("evaluation of others", "batch_size is '8' on rank 0 (host0) and '9' on rank 1 (host1)"),
        ("separate evaluations", "figures of rank 0 (host0) is not that of rank 1 (host1)"),
        ("separate folders", "run of rank 0 (host0) is not that of rank 1 (host1)"),
    ],
)
def test_what_else_must_be_the_same(ended, case, named):
    one, two = (lines[case] for lines in ended)
    assert one == two
    assert one.startswith(("ValueError: ", "ClickException: ")), one
    assert named in one


@pytest.mark.parametrize(
    "case, error, named",
    [
        ("a wrong setting", "ValueError", "lr must be "),
        ("no data", "FileNotFoundError", "only-here"),
        ("nothing to resume", "FileNotFoundError", "run holds no run"),
    ],
)
def test_a_failure_of_one_is_told_on_the_other_host(ended, case, error, named):
    one, two = (lines[case] for lines in ended)
    if case == "nothing to resume":  # both fail, each for itself
        assert one.startswith(error)
    else:
        assert one.startswith("RunStopped: rank 1 (host1) failed: ")
    assert two.startswith(error)
    assert named in one
    assert named in two
