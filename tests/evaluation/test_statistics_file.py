"""Files of statistics: ours, OpenAI's, and those of other features."""

import numpy as np
import pytest
import torch

from mvar_models.evaluation import evaluate
from mvar_models.evaluation.image_sets import ArrayImages
from mvar_models.evaluation.statistics_file import has_statistics, read_statistics, save_statistics
from mvar_models.evaluation.summary import summarize

from feature_cases import random_images, toy


@pytest.mark.parametrize("change", [{"weights": "b" * 64}, {"dtype": torch.bfloat16}])
def test_statistics_of_other_weights_or_another_type_are_refused(tmp_path, change):
    network = toy()
    network.weights, network.dtype = "a" * 64, torch.float32
    images, file = random_images(20), tmp_path / "statistics.npz"
    evaluate(images, images, features=network, statistics=file)
    assert evaluate(images, file, features=network, metrics=["fd"])["fd"] < 1e-3
    for name, value in change.items():
        setattr(network, name, value)
    with pytest.raises(
        ValueError, match=r"holds statistics of toy, (a{16}|float32) .*not of toy, (b{16}|bfloat16)"
    ):
        evaluate(images, file, features=network, metrics=["fd"])


def test_what_is_written_is_read(tmp_path):
    images, file = ArrayImages(random_images(30), np.arange(30) % 2), tmp_path / "statistics.npz"
    written = summarize(images, toy())
    save_statistics(written, file)
    found, more = read_statistics(file, toy())
    assert has_statistics(file)
    assert more is None
    assert np.array_equal(found.moments.covariance, written.moments.covariance)
    assert np.array_equal(found.spatial.mean, written.spatial.mean)
    assert np.array_equal(found.features, written.features)
    assert (found.count, found.size, found.labels.tolist()) == (30, (4, 4), images.labels.tolist())


def test_statistics_of_other_features_are_refused(tmp_path):
    file = tmp_path / "statistics.npz"
    np.savez(file, mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(ValueError, match=r"statistics of inception-tf \(2,048 numbers\), not of toy"):
        read_statistics(file, toy())


def test_images_beside_statistics_of_other_features_are_used(tmp_path):
    file = tmp_path / "statistics.npz"
    np.savez(file, mu=np.zeros(3), sigma=np.eye(3), arr_0=random_images(4))
    summary, images = read_statistics(file, toy())
    assert summary is None
    assert len(images) == 4


@pytest.mark.parametrize(
    "arrays, said",
    [
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, r"sigma must be \(3, 3\) of numbers, got \(2, 2\)"),
        ({"mu": np.array(["a"]), "sigma": np.eye(1)}, r"mu must be \(any,\) of numbers, got \(1,\) of <U1"),
        (
            {"mu": np.zeros(1), "sigma": np.eye(1), "count": np.zeros(3)},
            r"count must be \(\) of whole numbers",
        ),
        ({"mu": np.zeros(1), "sigma": np.eye(1), "count": np.array(-1)}, "count must be at least 2"),
        ({"mu": np.zeros(1), "sigma": np.eye(1), "size": np.array(3)}, r"size must be \(2,\)"),
        ({"mu": np.zeros(2), "sigma": np.array([[1, np.nan], [0, 1]])}, "not finite"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 5], [0, 1]])}, "not symmetric"),
        ({"mu": np.array([{}], dtype=object), "sigma": np.eye(1)}, "pickled objects"),
    ],
)
def test_damaged_statistics_are_refused(tmp_path, arrays, said):
    file = tmp_path / "statistics.npz"
    np.savez(file, network=np.array("toy"), **arrays)
    with pytest.raises(ValueError, match=said):
        read_statistics(file, toy())
