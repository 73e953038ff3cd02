"""The demo's judges know good from bad, and a short demo writes everything that it promises."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mvar_models.cli.main import main
from mvar_models.data.digits import Digits
from mvar_models.demo import report
from mvar_models.demo.quality import DigitJudge, features


@pytest.fixture(scope="module")
def digits():
    source = Digits(32)
    train, val = source.train, source.held_out

    def pictures(which):
        return ((source.images(which) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()

    return features(pictures(train)), source.labels[train], features(pictures(val)), source.labels[val]


@pytest.fixture(scope="module")
def judge(digits):
    return DigitJudge(*digits)


def test_features_are_the_original_digits(digits):
    from sklearn.datasets import load_digits

    raw = load_digits()
    train = Digits(32).train
    assert np.corrcoef(digits[0][:50].ravel(), raw.data[train[:50]].ravel())[0, 1] > 0.97
    assert digits[0].shape[1] == 64
    assert 0 <= digits[0].min()
    assert digits[0].max() <= 16


def test_real_digits_are_judged_good(judge, digits):
    _, _, val, labels = digits
    quality = judge.judge(val, labels)
    assert quality.agreement == judge.accuracy > 0.97
    assert quality.frechet < 15
    assert 0.03 < quality.near_copies < 0.07


def test_bad_pictures_are_judged_bad(judge, digits):
    train, train_labels, val, labels = digits
    noise = np.random.default_rng(0).uniform(0, 16, val.shape)
    assert judge.judge(noise, labels).agreement < 0.3
    assert judge.judge(noise, labels).frechet > 300
    assert judge.judge(val, (labels + 1) % 10).agreement < 0.02
    assert judge.judge(train, train_labels).near_copies == 1.0
    one_class = val[labels == 3]
    assert judge.judge(one_class, labels[labels == 3]).frechet > 100, (
        "a model that draws one class only is not good"
    )


def test_a_short_demo_writes_everything(tmp_path):
    out = tmp_path / "demo"
    for _ in range(2):  # running it again replaces its own output
        result = CliRunner().invoke(main, ["demo", "--out", str(out), "--steps", "2", "--samples", "80"])
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
    for name in ("samples", "training", "attention"):
        with Image.open(out / f"{name}.png") as picture:
            assert picture.width > 500
            assert np.array(picture.convert("L")).std() > 10
    lines = [line for line in result.stdout.splitlines() if line.strip()]
    assert lines[-1].startswith("look at")
    assert any(line.startswith("cross-entropy: VAR") for line in lines)


def test_gates_fail_where_they_should():
    figures = {
        "validation": {"var": {"val_loss": 2.0}, "mvar": {"val_loss": 2.031}},
        "quality": {"var": {"frechet": 30.0}, "mvar": {"frechet": 40.1, "agreement": 0.96}},
    }
    assert list(report.gates(figures).values()) == [False, False, False]
    figures["validation"]["mvar"]["val_loss"] = 2.029
    figures["quality"]["mvar"] = {"frechet": 39.9, "agreement": 0.97}
    assert all(report.gates(figures).values())
