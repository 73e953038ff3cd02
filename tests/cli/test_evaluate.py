"""`mvar evaluate` on arrays and on the embedded models."""

import json
import os

import numpy as np
import pytest
import torch.distributed as dist
from click.testing import CliRunner

from mvar_models.cli.main import main

from feature_cases import random_images
from fork_cases import Forked, fork_pair
from run_cases import make_data


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


def test_what_no_set_has_is_said_once(files):
    np.savez(files / "few.npz", random_images(3))
    options = ["--features", "pixels", "--metrics", "fd", "--out", files / "out"]
    both = [files / "drawn.npz", files / "few.npz", "--reference", files / "reference.npz"]
    assert "no " not in run(*both, *options).output
    done = run(*both, "--features", "pixels", "--out", files / "out")
    assert done.exit_code == 0, done.output
    lines = [line for line in done.output.splitlines() if ": no " in line or line.startswith("no ")]
    assert [line.partition(":")[0] for line in lines[:4]] == [
        "no sfd",
        "no is",
        "no label_agreement",
        "no class_diversity",
    ]
    assert all(line.startswith(str(files / "few.npz")) for line in lines[4:])
    assert len(lines) > 4


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((), "what is to be evaluated"),
        (("--model", "var-digits"), "--model and --per-class go together"),
        (("digits", "--per-class", 3), "--model and --per-class go together"),
        (("digits", "--held-out", "digits"), "--held-out is for --model"),
        (("digits", "--save-statistics", "s.bin"), "must end in .npz, got s.bin"),
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


def test_classes_that_a_model_lacks_are_refused_before_it_samples(tmp_path):
    data = make_data(tmp_path) / "data"
    options = ["--model", "mvar-digits", "--per-class", 1, "--held-out", data, "--out", tmp_path / "out"]
    done = run("--reference", "digits@train", "--features", "pixels", *options)
    assert done.exit_code == 1
    assert "the data has classes that the model does not: ant, bee; its classes are zero" in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed with gloo")
def test_two_processes_give_the_figures_of_one(tmp_path):
    for name, seed in (("drawn", 0), ("reference", 1)):
        np.savez(tmp_path / f"{name}.npz", random_images(61, seed=seed))
    options = ["drawn.npz", "--reference", "reference.npz", "--features", "pixels", "--bootstrap", "5"]

    def evaluate(count):
        os.chdir(tmp_path)
        main(["evaluate", *options, "--json", f"{count}.json", "--out", f"out{count}"])

    printed = [tmp_path / f"{name}.txt" for name in ("one", "rank-0", "rank-1")]
    alone = Forked(lambda: evaluate(1), printed[0])
    assert alone.wait() == 0
    pair = fork_pair(lambda: evaluate(2), printed[1:])
    tables = [process.communicate().count("drawn.npz  ") for process in (alone, *pair)]
    assert tables == [1, 1, 0], "one process prints the table"
    assert [process.returncode for process in pair] == [0, 0]
    figures = [json.loads((tmp_path / f"{count}.json").read_text()) for count in (1, 2)]
    one, two = figures
    assert one["precision"] is not None
    for name in ("fd", "precision", "recall", "density", "coverage", "near_copies"):
        assert two[name] == pytest.approx(one[name], rel=1e-6), name
    assert two["kid"] == pytest.approx(one["kid"], rel=1e-6)
