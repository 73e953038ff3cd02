"""The names of ImageNet's classes, and labels given by them."""

import argparse

import numpy as np
import pytest

from mvar_models import MVARConfig, MVARPipeline
from mvar_models.checkpoints import zoo


def test_imagenet_names():
    names = zoo.imagenet_names()
    assert len(names) == zoo.IMAGENET_CLASSES == 1000
    assert names[0] == "tench, Tinca tinca"
    assert names[207] == "golden retriever"
    assert names[980] == "volcano"


def test_labels_by_synonym_and_by_number():
    pipeline = object.__new__(MVARPipeline)
    pipeline.model = argparse.Namespace(config=MVARConfig(depth=1, class_names=zoo.imagenet_names()))
    labels = "Golden Retriever", "tench", "TENCH, tinca tinca", "207", 3, np.int64(4)
    assert [pipeline.label_of(label) for label in labels] == [207, 0, 0, 207, 3, 4]
    with pytest.raises(ValueError, match=r"'golden retreiver': .*'golden retriever'"):
        pipeline.label_of("golden retreiver")
    with pytest.raises(ValueError, match="'crane' is the name of classes 134, 517"):
        pipeline.label_of("crane")
    with pytest.raises(ValueError, match="unknown label 'unicorn': its classes are tench"):
        pipeline.label_of("unicorn")
    with pytest.raises(TypeError, match="a label must be an int or a class name"):
        pipeline.label_of(1.5)
