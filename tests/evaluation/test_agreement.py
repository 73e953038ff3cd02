"""The share of drawn images whose nearest reference image is of their class."""

import numpy as np
import pytest

from mvar_models.evaluation import evaluate
from mvar_models.evaluation.image_sets import ArrayImages
from mvar_models.evaluation.table import table

from feature_cases import random_images


def classes(labels, seed):
    """Return images that are as bright as their class's number says, with some noise."""
    noise = random_images(len(labels), seed=seed, high=20)
    return (noise + 60 * np.asarray(labels)[:, None, None, None]).astype(np.uint8)


def agreement(drawn, drawn_labels, reference):
    found = evaluate(drawn, reference, features="pixels", labels=np.asarray(drawn_labels))
    return found["label_agreement"]


def test_it_counts_the_images_that_look_like_their_class():
    labels = np.arange(40) % 4
    reference = ArrayImages(classes(labels, seed=0), labels)
    drawn = classes(labels, seed=1)
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


def test_the_table_shows_it():
    labels = np.arange(20) % 2
    reference = ArrayImages(classes(labels, seed=0), labels)
    found = evaluate(classes(labels, seed=1), reference, features="pixels", labels=labels)
    head, row, *notes = table([found])
    assert "own class" in head
    assert "100.0%" in row.split()
    assert any(note.startswith("own class:") for note in notes)
