"""How far apart the drawn images of one class are, beside real ones."""

import numpy as np
import pytest

from mvar_models.evaluation import evaluate
from mvar_models.evaluation.image_sets import ArrayImages
from mvar_models.evaluation.table import table

from feature_cases import random_images


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


def test_the_table_shows_it():
    found = evaluate(classes(LABELS, 20, seed=1), REFERENCE, features="pixels", labels=LABELS)
    head, row, *notes = table([found])
    assert head.split()[-1] == "diversity"
    assert float(row.split()[-1]) == pytest.approx(0.5, abs=0.02)
    assert any(note.startswith("diversity:") for note in notes)
