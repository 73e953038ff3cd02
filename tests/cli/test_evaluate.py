"""`mvar evaluate` on arrays and on the embedded models."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from mvar_models.cli.main import main

from feature_cases import random_images


def run(*arguments):
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


@pytest.fixture
def files(tmp_path):
    for name, seed in (("drawn", 0), ("reference", 1)):
        np.savez(tmp_path / f"{name}.npz", random_images(30, seed=seed))
    return tmp_path


def test_table_json_and_statistics(files):
    out = ["--features", "pixels", "--json", files / "figures.json", "--out", files / "out"]
    statistics = files / "statistics.npz"
    done = run(
        files / "drawn.npz", "--reference", files / "reference.npz", "--save-statistics", statistics, *out
    )
    assert done.exit_code == 0, done.output
    assert "FD-pixels" in done.output
    first = json.loads((files / "figures.json").read_text())
    assert len(first["sets"]["drawn"]["digest"]) == 64
    assert (files / "out" / "neighbours.png").is_file()
    assert run(files / "drawn.npz", "--reference", statistics, *out).exit_code == 0
    assert json.loads((files / "figures.json").read_text())["fd"] == first["fd"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((), "what is to be evaluated"),
        (("--model", "var-digits"), "--model and --per-class go together"),
        (("digits", "--per-class", 3), "--model and --per-class go together"),
        (("digits", "--held-out", "digits"), "--held-out is for --model"),
        (("absent.npz",), "absent.npz: no such file"),
        (("digits", "--metrics", "fd,fod"), "'fod'"),
        (("digits", "--by-class", "--metrics", "fd", "--reference", "digits@test"), "train or held-out"),
    ],
)
def test_wrong_input_is_one_line(arguments, said):
    done = run("--reference", "digits@train", "--features", "pixels", *arguments)
    assert done.exit_code in (1, 2)
    assert said in done.output
    assert "Traceback" not in done.output
