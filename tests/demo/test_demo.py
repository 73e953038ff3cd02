"""A short demo writes everything that it promises, and its gates fail where they should."""

import json
import re
import sys
from types import SimpleNamespace

import numpy as np
from click.testing import CliRunner
from PIL import Image
from sklearn import datasets

from mvar_models.cli.main import main
from mvar_models.demo import report, steps_to_gate
from mvar_models.sampling import progress


def test_without_matplotlib_nothing_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = CliRunner().invoke(main, ["demo", "--out", str(tmp_path / "demo")])
    assert result.exit_code == 1 and "pip install '.[demo]'" in result.output
    assert not (tmp_path / "demo").exists()


def test_a_short_demo_writes_everything(tmp_path, monkeypatch):
    digits = datasets.load_digits()
    # A fifth of the digits: encoding all of them takes most of a demo's time.
    few = SimpleNamespace(images=digits.images[:360], target=digits.target[:360])
    monkeypatch.setattr(datasets, "load_digits", lambda: few)
    out = tmp_path / "demo"
    for name in ("_FIRST_LINE", "_BETWEEN_LINES"):
        monkeypatch.setattr(progress, name, 0.0)
    # What an earlier demo left, which training would refuse to overwrite.
    (out / "runs" / "mvar").mkdir(parents=True)
    (out / "runs" / "mvar" / "config.yaml").write_text("earlier")
    result = CliRunner().invoke(main, ["demo", "--out", str(out), "--steps", "2", "--samples", "30"])
    assert result.exit_code == 0, result.output
    figures = json.loads((out / "report.json").read_text())
    assert set(figures["validation"]) == {"var", "mvar_untuned", "mvar", "var_control"}
    assert all(len(value["val_loss_per_scale"]) == 6 for value in figures["validation"].values())
    assert figures["attention"]["pairs_mvar"] < figures["attention"]["pairs_var"] / 5
    assert all(drawn["peak_bytes"] > 1e6 and drawn["seconds"] > 0 for drawn in figures["sampling"].values())
    assert {"commit", "torch", "python"} <= set(figures["environment"])
    text = (out / "report.md").read_text()
    assert "VAR, trained for as long (control)" in text
    assert "held-out real digits" in text
    assert set(figures["gates"]) == set(report.gates(figures))
    assert "](emoji/classes.png)" in text
    assert figures["emoji"]["seconds"] > 0
    for name in (
        "samples",
        "training",
        "attention",
        "editing",
        "emoji/classes",
        "emoji/scales",
        "emoji/inpainting",
    ):
        with Image.open(out / f"{name}.png") as picture:
            assert picture.width > (200 if name.startswith("emoji") else 500)
            assert np.array(picture.convert("L")).std() > 10
    lines = [line for line in result.stdout.splitlines() if line.strip()]
    assert lines[-1].startswith("look at")
    assert any(line.startswith("cross-entropy: VAR") for line in lines)
    loops = re.findall(r"^(.+): [\d,]+ of [\d,]+ \w+s in [\d,]+ s, about [\d,]+ s left", result.stderr, re.M)
    assert set(loops) == {"encoding", "training", "validation", "sampling"}


def test_gates_fail_where_they_should():
    figures = {
        "validation": {"var": {"val_loss": 2.0}, "mvar": {"val_loss": 2.031}},
        "quality": {"var": {"frechet": 30.0}, "mvar": {"frechet": 40.1, "agreement": 0.96}},
    }
    assert list(report.gates(figures).values()) == [False, False, False]
    figures["validation"]["mvar"]["val_loss"] = 2.029
    figures["quality"]["mvar"] = {"frechet": 39.9, "agreement": 0.97}
    assert all(report.gates(figures).values())


def test_the_gate_is_reached_once_the_loss_stays_within_it():
    assert steps_to_gate([(100, 2.0), (200, 2.1), (300, 2.02), (400, 2.029)], 2.0) == 300
    assert steps_to_gate([(100, 2.0), (200, 2.1)], 2.0) is None
