"""The features `inception-tf`: images in, three outputs out, and weights that are named, cached or absent."""

import pytest
import torch

from mvar_models.evaluation.features.inception_weights import STATE_DICT, load_inception
from mvar_models.evaluation.features.network import feature_network
from mvar_models.evaluation.features.weights import digest

from inception_cases import random_state


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(random_state(3), path)
    return path


def test_images_give_all_outputs(weights, seed):
    network = feature_network("inception-tf", weights=weights)
    assert (network.name, network.distance, network.dimension) == ("inception-tf", "FID", 2048)
    assert network.weights == digest(weights)
    images = torch.randint(0, 256, (2, 20, 24, 3), dtype=torch.uint8)
    found = network(images)
    expected = load_inception(weights)(images.permute(0, 3, 1, 2))
    for name, size in (("features", 2048), ("spatial", 2023), ("logits", 1008)):
        values = getattr(found, name)
        assert values.shape == (2, size)
        assert values.dtype is torch.float32
        assert not values.requires_grad
        assert torch.equal(values, getattr(expected, name)), name
    empty = network(images[:0])
    assert [tuple(v.shape) for v in (empty.features, empty.spatial, empty.logits)] == [
        (0, 2048),
        (0, 2023),
        (0, 1008),
    ]


def test_wrong_images_are_refused(weights):
    network = feature_network("inception-tf", weights=weights)
    with pytest.raises(ValueError, match="images must be uint8"):
        network(torch.rand(2, 20, 20, 3))


def test_without_weights_the_line_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=rf"inception-tf needs {STATE_DICT.name}; .*'download' .*96 MB"
    ):
        feature_network("inception-tf")
