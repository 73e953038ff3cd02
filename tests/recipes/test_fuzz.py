"""A small share of what scripts/fuzz.py reads: no traceback, and one line that names the file."""

import logging

import pytest

from chosen_cases import EVERYTHING
from script_cases import load_script

INPUTS = 440 if EVERYTHING else 220

load_script("mutations")
script = load_script("fuzz")


@pytest.fixture
def found(tmp_path):
    logging.disable(logging.CRITICAL)
    try:
        return script.fuzz(INPUTS, 0, tmp_path, commands_every=40)
    finally:
        logging.disable(logging.NOTSET)


def test_mutated_files_end_well_or_in_one_line(found):
    assert found.wrong == {}
    assert found.inputs == INPUTS and found.refused > INPUTS * 0.45
    assert len([name for name in found.by_target if "command" not in name]) == 11


@pytest.mark.parametrize(
    "error, said",
    [
        (KeyError("step"), "traceback: KeyError"),
        (RecursionError("maximum recursion depth exceeded"), "traceback: RecursionError"),
        (ValueError("a.json: list indices must be integers"), "says 'indices must be'"),
        (TypeError("a.json: '>' not supported between instances of 'str' and 'int'"), "says 'not supported"),
        (ValueError("width must be a whole number"), "names nothing"),
        (ValueError("a.json: width must be a whole number"), ""),
    ],
)
def test_what_is_no_good_ending(error, said):
    try:
        raise error
    except Exception as raised:
        judged = script.judge(raised, ("a.json",))
    assert judged.startswith(said) and bool(judged) == bool(said)
