"""One pass over a set, alone and shared."""

import tracemalloc

import numpy as np
import pytest

from mvar_models.distributed import Processes
from mvar_models.evaluation.features.network import FeatureOutputs
from mvar_models.evaluation.image_sets import ArrayImages
from mvar_models.evaluation.npz import NpzImages
from mvar_models.evaluation.summary import summarize

from feature_cases import Toy, random_images, toy
from progress_cases import recorded


class Second(Processes):
    """The second of two processes, whose part is handed on."""

    def exchange(self, value):
        return [value] * self.world_size

    def gather(self, value):
        self.sent = value
        return []


class First(Second):
    def __init__(self, other):
        super().__init__(0, 2)
        self.other = other

    def gather(self, value):
        return [value, self.other.sent]


def test_two_processes_find_what_one_finds():
    images = ArrayImages(random_images(50), np.arange(50))
    second = Second(1, 2)
    assert summarize(images, toy(), batch_size=8, processes=second) is None
    shared = summarize(images, toy(), batch_size=8, processes=First(second))
    alone = summarize(images, toy(), batch_size=8)
    np.testing.assert_allclose(shared.moments.covariance, alone.moments.covariance, rtol=1e-9, atol=1e-9)
    assert shared.score.result() == pytest.approx(alone.score.result(), rel=1e-9)
    assert np.array_equal(shared.features, alone.features)
    assert shared.labels.tolist() == list(range(50))


def test_features_are_kept_on_request():
    images = ArrayImages(random_images(5))
    assert summarize(images, toy(), keep=False).features is None


class MeanColour(Toy):
    def __call__(self, images):
        return FeatureOutputs(images.float().mean((1, 2)))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_memory_does_not_grow_with_the_set(tmp_path, save):
    """NumPy's allocations and the bytes of the file stay far below the 61 MB of images."""
    save(tmp_path / "images.npz", np.zeros((5000, 64, 64, 3), dtype=np.uint8))
    images = NpzImages(tmp_path / "images.npz")
    tracemalloc.start()
    try:
        summary = summarize(images, MeanColour(), keep=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert summary.count == 5000
    assert peak < 12e6, f"{peak / 1e6:.1f} MB"


def test_progress_is_reported():
    with recorded() as meters:
        summarize(ArrayImages(random_images(5)), toy(), batch_size=2)
    assert [(meter.title, meter.total, meter.seen) for meter in meters] == [
        ("features of images", 5, [2, 4, 5])
    ]
