"""Figures of each class are those of its images."""

import numpy as np
import pytest

from mvar_models.evaluation.by_class import by_class
from mvar_models.evaluation.comparison import Comparison
from mvar_models.evaluation.frechet import frechet_distance
from mvar_models.evaluation.image_sets import ArrayImages
from mvar_models.evaluation.summary import summarize

from feature_cases import random_images, toy


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
