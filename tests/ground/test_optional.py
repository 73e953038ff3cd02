"""Optional packages: the module, or an error that names it and the extra that brings it."""

import json
import sys

import pytest

from mvar_models.optional import require


def test_a_module_that_is_there_is_returned():
    assert require("json", "plots") is json
    assert require("os.path", "plots") is sys.modules["os.path"]


def test_an_absent_module_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"matplotlib.*\[plots\]"):
        require("matplotlib", "plots")


def test_a_module_that_lacks_its_own_dependency_says_which(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import missing_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"half_installed.*missing_dependency.*\[plots\]"):
        require("half_installed", "plots")


def test_other_errors_of_a_module_are_its_own(tmp_path, monkeypatch):
    """An installed module with a bug must not be reported as absent."""
    (tmp_path / "broken_inside.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        require("broken_inside", "plots")
