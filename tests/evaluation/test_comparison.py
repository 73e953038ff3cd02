"""The metrics of a comparison, by their definitions, and what it cannot compute."""

import inspect

import numpy as np
import pytest

from mvar_models.evaluation import comparison as module
from mvar_models.evaluation import evaluate
from mvar_models.evaluation.comparison import (
    METRICS,
    Comparison,
    Unavailable,
    bootstrap_intervals,
    by_class,
    metric,
)
from mvar_models.evaluation.image_sets import ArrayImages
from mvar_models.evaluation.nearest import leave_one_out
from mvar_models.evaluation.report import table
from mvar_models.evaluation.scores import frechet_distance
from mvar_models.evaluation.summary import summarize

from feature_cases import random_images, toy


def summary(seed=0, keep=True):
    return summarize(ArrayImages(random_images(30, seed=seed)), toy(), keep=keep)


def test_statistics_alone_give_no_neighbours():
    comparison = Comparison(summary(), summary(1, keep=False))
    assert module.fd(comparison)["fd"] > 0
    for name in ("precision", "kid", "near_copies"):
        with pytest.raises(Unavailable):
            getattr(module, name)(comparison)


def test_neighbours_are_computed_once():
    comparison = Comparison(summary(), summary(1))
    assert comparison.neighbourhoods is comparison.neighbourhoods


def test_the_reference_without_each_image_is_the_measure_of_copies():
    reference = summary()
    found = leave_one_out(reference.features, reference.features, reference.indices, "itself")
    assert (found.distances == 0).all()
    assert (found.real > 0).all()


@pytest.mark.parametrize("name", METRICS)
def test_rows_are_functions_with_documented_arguments(name):
    function = metric(name)
    assert callable(function)
    assert inspect.getdoc(function), f"{name} has no docstring"


def test_each_name_gives_its_function():
    assert {name: metric(name) for name in METRICS} == {
        "fd": module.fd,
        "sfd": module.sfd,
        "is": module.inception,
        "precision": module.precision,
        "recall": module.recall,
        "density": module.density,
        "coverage": module.coverage,
        "kid": module.kid,
        "near_copies": module.near_copies,
        "label_agreement": module.label_agreement,
        "class_diversity": module.class_diversity,
    }


def test_unknown_metrics_are_refused():
    with pytest.raises(ValueError, match=r"metric.*recall.*'ssim'"):
        metric("ssim")


def test_each_class_is_compared_with_its_own():
    labels = np.arange(40) % 2
    sets = [ArrayImages(random_images(40, seed=seed), labels) for seed in (0, 1)]
    drawn, reference = (summarize(each, toy()) for each in sets)
    for each in by_class(Comparison(drawn, reference))["per_class"]:
        members = labels == each["label"]
        expected = frechet_distance(drawn.features[members].numpy(), reference.features[members].numpy())
        assert each["fd"] == pytest.approx(expected)


def test_without_labels_there_are_none():
    found = summarize(ArrayImages(random_images(9)), toy())
    assert by_class(Comparison(found, found)) == {}


def test_a_share_deviates_as_a_binomial():
    drawn, reference = (summarize(ArrayImages(random_images(80, seed=seed)), toy()) for seed in (0, 1))
    comparison = Comparison(drawn, reference)
    share = comparison.neighbourhoods.precision
    found = bootstrap_intervals(comparison, 60)["precision"]
    assert found["deviation"] == pytest.approx((share * (1 - share) / 80) ** 0.5, rel=0.4)
    assert (found["low"] + found["high"]) / 2 == pytest.approx(share)


def bright_classes(labels, seed):
    """Return images that are as bright as their class's number says, with some noise."""
    noise = random_images(len(labels), seed=seed, high=20)
    return (noise + 60 * np.asarray(labels)[:, None, None, None]).astype(np.uint8)


def agreement(drawn, drawn_labels, reference):
    found = evaluate(drawn, reference, features="pixels", labels=np.asarray(drawn_labels))
    return found["label_agreement"]


def test_it_counts_the_images_that_look_like_their_class():
    labels = np.arange(40) % 4
    reference = ArrayImages(bright_classes(labels, seed=0), labels)
    drawn = bright_classes(labels, seed=1)
    assert agreement(drawn, labels, reference) == 1
    wrong = labels.copy()
    wrong[:10] = (wrong[:10] + 1) % 4
    assert agreement(drawn, wrong, reference) == 0.75
    assert agreement(drawn, (labels + 1) % 4, reference) == 0


def test_images_without_class_agree_by_chance():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    reference = ArrayImages(random_images(400, seed=0), labels)
    assert 0.15 < agreement(random_images(400, seed=1), labels, reference) < 0.35


def test_without_labels_there_is_none_and_a_reason():
    images = random_images(20)
    found = evaluate(
        images, ArrayImages(random_images(20, seed=1), np.zeros(20, np.int64)), features="pixels"
    )
    assert found["label_agreement"] is None
    assert "has no labels" in found["left_out"]["label_agreement"]
    with pytest.raises(ValueError, match=r"label_agreement cannot be computed: .* has no labels"):
        evaluate(images, images, features="pixels", metrics=["label_agreement"])


def test_the_table_shows_agreement():
    labels = np.arange(20) % 2
    reference = ArrayImages(bright_classes(labels, seed=0), labels)
    found = evaluate(bright_classes(labels, seed=1), reference, features="pixels", labels=labels)
    head, row, *notes = table([found])
    assert "own class" in head
    assert "100.0%" in row.split()
    assert any(note.startswith("own class:") for note in notes)


def classes(labels, spread, seed):
    """Return images around a picture of their class, `spread` away from it in each number."""
    pictures = random_images(max(labels) + 1, seed=9, low=100, high=150)
    signs = np.random.default_rng(seed).choice([-1, 1], (len(labels), *pictures.shape[1:]))
    return (pictures[labels] + spread * signs).astype(np.uint8)


def diversity(drawn, drawn_labels, reference):
    return evaluate(drawn, reference, features="pixels", labels=drawn_labels)["class_diversity"]


LABELS = np.arange(80) % 4
REAL = classes(LABELS, 40, seed=0)
REFERENCE = ArrayImages(REAL, LABELS)


@pytest.mark.parametrize("spread", [10, 20, 40, 80])
def test_it_is_the_ratio_of_distances(spread):
    assert diversity(classes(LABELS, spread, seed=1), LABELS, REFERENCE) == pytest.approx(
        spread / 40, rel=0.02
    )


def test_it_is_the_mean_over_all_pairs():
    drawn = classes(LABELS, 15, seed=2)

    def squared(flat):
        groups = [flat[LABELS == label] for label in range(4)]
        pairs = [((a - b) ** 2).sum() for group in groups for i, a in enumerate(group) for b in group[:i]]
        return np.mean(pairs)

    expected = np.sqrt(
        squared(drawn.reshape(80, -1).astype(float)) / squared(REAL.reshape(80, -1).astype(float))
    )
    assert diversity(drawn, LABELS, REFERENCE) == pytest.approx(expected, rel=1e-5)


def test_one_picture_for_each_class_has_none():
    """The classes differ, so all images together do not show it."""
    drawn = classes(LABELS, 0, seed=0)
    assert diversity(drawn, LABELS, REFERENCE) == 0


def test_a_class_with_one_image_does_not_count():
    drawn = classes(np.append(LABELS, 4), 20, seed=1)
    labels = np.append(LABELS, 4)
    reference = ArrayImages(np.append(REAL, drawn[-1:], 0), labels)
    assert diversity(drawn, labels, reference) == pytest.approx(0.5, rel=0.02)


def test_without_pairs_or_labels_there_is_a_reason():
    images = random_images(20)
    alone = evaluate(
        images, ArrayImages(images, np.arange(20)), features="pixels", labels=np.arange(20), per_class=False
    )
    assert alone["class_diversity"] is None
    assert "no class has two different images" in alone["left_out"]["class_diversity"]
    with pytest.raises(ValueError, match=r"class_diversity cannot be computed: .* has no labels"):
        evaluate(images, images, features="pixels", metrics=["class_diversity"])


def test_the_table_shows_diversity():
    found = evaluate(classes(LABELS, 20, seed=1), REFERENCE, features="pixels", labels=LABELS)
    head, row, *notes = table([found])
    assert head.split()[-1] == "diversity"
    assert float(row.split()[-1]) == pytest.approx(0.5, abs=0.02)
    assert any(note.startswith("diversity:") for note in notes)
