"""`mvar models`: the zoo as a table."""

from mvar_models import list_models

from command_cases import mvar


def test_a_pattern_selects():
    lines = mvar("models 'mvar-d*'").output.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == list_models("mvar-d*")


def test_a_line_says_where_the_weights_come_from_and_what_was_published():
    (line,) = mvar("models mvar-d16").output.splitlines()[1:-1]
    assert line.endswith("CVLUESTC/MVAR/mvar-d16.pth")
    assert "3.01" in line
    assert " 256 " in line


def test_without_a_pattern_all_are_listed():
    output = mvar("models").output
    for name in list_models():
        assert name in output
