"""`evaluate`: keys, agreement with brute force, orders under damage, and wrong input."""

import json

import numpy as np
import pytest
import torch

from mvar_models.evaluation import evaluate, prepare_reference
from mvar_models.evaluation.features.network import FEATURES
from mvar_models.evaluation.image_sets import ArrayImages
from mvar_models.evaluation.scores import frechet_distance

from feature_cases import random_images, toy

KEYS = ("fd", "sfd", "is", "precision", "recall", "density", "coverage", "kid", "near_copies")


def flat(images):
    return images.reshape(len(images), -1).astype(float)


def test_all_keys_and_figures():
    drawn, reference = random_images(90, seed=1), random_images(80, seed=2)
    found = evaluate(drawn, reference, features=toy(), batch_size=7)
    assert all(found[key] is not None for key in (*KEYS, "features", "counts", "versions"))
    assert found["fd"] == pytest.approx(frechet_distance(flat(drawn), flat(reference)), rel=1e-6)
    assert found["sfd"] == pytest.approx(
        frechet_distance(flat(drawn)[:, :7], flat(reference)[:, :7]), rel=1e-6
    )
    assert found["counts"] == {"drawn": 90, "reference": 80, "training": 80}
    assert found["features"] == "toy"
    json.dumps(found)


def test_the_type_that_features_are_computed_in(monkeypatch):
    monkeypatch.setitem(FEATURES, "typed", "feature_cases:Typed")
    images = random_images(20)
    found = evaluate(images, images, features="typed", metrics=["fd"], dtype=torch.bfloat16)
    assert found["dtype"] == "bfloat16"
    assert evaluate(images, images, features="pixels", metrics=["fd"])["dtype"] == "float32"


def test_identical_sets():
    images = random_images(60)
    found = evaluate(images, images, features="pixels")
    assert found["fd"] == pytest.approx(0, abs=1e-3)
    assert (found["precision"], found["recall"], found["near_copies"]) == (1, 1, 1)


def test_noise_moves_every_figure_the_right_way():
    rng = np.random.default_rng(0)
    reference, clean = random_images(150, high=100), random_images(150, seed=1, high=100)
    found = []
    for noise in (0, 20, 120):
        noisy = (clean + rng.integers(0, noise + 1, clean.shape)).clip(0, 255).astype(np.uint8)
        found.append(evaluate(noisy, reference, features="pixels"))
    assert found[0]["fd"] < found[1]["fd"] < found[2]["fd"]
    assert found[0]["kid"] < found[1]["kid"] < found[2]["kid"]
    assert found[0]["precision"] > found[2]["precision"]


def test_copies_of_training_images_are_found():
    training, held_out = random_images(100), random_images(100, seed=1)
    options = {"features": "pixels", "training": training}
    others = random_images(70, seed=2)
    by_chance = evaluate(others, held_out, **options)["near_copies"]
    assert by_chance < 0.25
    copied = np.concatenate([training[:30], others])
    assert evaluate(copied, held_out, **options)["near_copies"] == pytest.approx(0.3 + 0.7 * by_chance)
    assert evaluate(held_out, held_out, **options)["near_copies"] == pytest.approx(0.05)


def test_classes_are_ranked():
    reference = ArrayImages(random_images(60, high=100), np.arange(60) % 3)
    drawn = random_images(60, seed=1, high=100)
    drawn[np.arange(60) % 3 == 1] += 100
    found = evaluate(drawn, reference, features="pixels", labels=np.arange(60) % 3)["per_class"]
    assert found[0]["label"] == 1
    assert [each["count"] for each in found] == [20, 20, 20]


def test_statistics_stand_for_the_reference(tmp_path):
    drawn, reference, file = random_images(60), random_images(70, seed=1), tmp_path / "reference.npz"
    first = evaluate(drawn, reference, features="pixels", statistics=file)
    second = evaluate(drawn, file, features="pixels")
    assert {key: second[key] for key in KEYS} == {key: first[key] for key in KEYS}


def test_a_prepared_reference_serves_several_sets():
    network = toy()
    prepared = prepare_reference(random_images(60), network)
    for seed in (1, 2):
        drawn = random_images(60, seed=seed)
        expected = evaluate(drawn, random_images(60), features=network)["fd"]
        assert evaluate(drawn, prepared)["fd"] == expected


def test_a_prepared_reference_is_not_contradicted():
    """What is named beside it would be ignored."""
    images = random_images(20)
    prepared = prepare_reference(images, toy(), metrics=["fd"])
    agreeing = {"features": "toy", "dtype": torch.float32}
    assert evaluate(images, prepared, metrics=["fd"], **agreeing)["features"] == "toy"
    for wrong in (
        {"features": "pixels"},
        {"dtype": torch.bfloat16},
        {"weights": "w.pth"},
        {"training": images},
    ):
        with pytest.raises(ValueError, match=rf"{next(iter(wrong))}: .*prepare"):
            evaluate(images, prepared, metrics=["fd"], **wrong)


@pytest.mark.parametrize("wrong", [{"dtype": torch.float16}, {"weights": "w.pth"}])
def test_a_network_that_is_given_is_not_contradicted(wrong):
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))}: features were given with toy in float32"):
        evaluate(random_images(9), random_images(9), features=toy(), **wrong)


def test_labels_are_not_written_into_the_callers_set():
    images = ArrayImages(random_images(20))
    found = evaluate(images, images, features="pixels", labels=np.arange(20) % 2)
    assert images.labels is None
    assert "label_agreement" in found["left_out"], "nor into the reference, which is the same object"


def test_few_images_are_warned_of_once_for_a_reference(caplog):
    prepared = prepare_reference(random_images(20, seed=2), toy(), metrics=["fd"])
    found = [evaluate(random_images(n), prepared, metrics=["fd"]) for n in (20, 20, 30)]
    said = [record.getMessage().partition(" for ")[0] for record in caplog.records]
    assert said == ["20 drawn images", "20 reference images", "30 drawn images"]
    assert all(len(each["warnings"]) == 2 for each in found)


def test_bootstrap_encloses_the_figure():
    found = evaluate(random_images(60), random_images(60, seed=1), features="pixels", bootstrap=5)
    interval = found["intervals"]["fd"]
    assert interval["low"] < found["fd"] < interval["high"]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"metrics": ["fod"]}, "metrics: 'fod' does not compare sets; those that do: fd, sfd"),
        ({"metrics": ["psnr"]}, "'psnr' does not compare sets"),
        ({"metrics": ["is"]}, "is cannot be computed.*no class probabilities"),
        ({"drawn": random_images(1)}, "at least 2 images, got 1"),
        ({"drawn": random_images(9, side=5)}, "5 x 5 pixels.*4 x 4"),
        ({"drawn": random_images(9).astype(float)}, r"drawn must be in \[0, 1\] if float, got 0 to 255"),
        ({"drawn": random_images(9)[..., 0]}, r"\(n, H, W, 3\), got \(9, 4, 4\)"),
        ({"per_class": True}, "per_class: .* has no labels"),
        ({"labels": np.zeros(3)}, "one per image, got 3 for 9"),
        ({"metrics": ["precision"], "reference": random_images(4)}, "precision cannot be computed.*got 4"),
        ({"bootstrap": 1}, "bootstrap must be 0, or at least 2"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"features": "vgg"}, "features must be one of.*'vgg'"),
    ],
)
def test_wrong_input_is_one_line(change, said):
    options = {"drawn": random_images(9), "reference": random_images(9, seed=1), "features": "pixels"}
    with pytest.raises(ValueError, match=said) as error:
        evaluate(**{**options, **change})
    assert "\n" not in str(error.value)
