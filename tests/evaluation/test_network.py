"""The table of feature networks, and what every row of it keeps to."""

import pytest
import torch

from mvar_models.evaluation.features.network import FEATURES, check_images, feature_network


@pytest.mark.parametrize("name", ["efficientnet-lite0", "pixels"])
def test_rows_keep_to_the_protocol(name):
    network = feature_network(name)
    images = torch.randint(0, 256, (3, 20, 20, 3), dtype=torch.uint8)
    outputs = network(images)
    assert network.name == name
    assert outputs.features.dtype == torch.float32
    assert outputs.features.shape == (3, network.dimension or outputs.features.shape[1])
    assert not outputs.features.requires_grad
    assert len(network(images[:0]).features) == 0
    assert outputs.spatial is None
    assert outputs.logits is None


@pytest.mark.parametrize("name", ["efficientnet-lite0", "pixels"])
def test_an_image_does_not_depend_on_its_batch(name):
    network = feature_network(name)
    images = torch.randint(0, 256, (3, 24, 24, 3), dtype=torch.uint8)
    together = network(images).features
    torch.testing.assert_close(network(images[1:2]).features, together[1:2], rtol=1e-4, atol=1e-4)


def test_only_inception_gives_an_fid():
    for name in ("efficientnet-lite0", "pixels"):
        assert feature_network(name).distance.startswith("FD-")


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"features must be one of .*pixels.*'inception-v4'"):
        feature_network("inception-v4")
    assert next(iter(FEATURES)) == "efficientnet-lite0"


def test_a_row_is_enough(monkeypatch):
    monkeypatch.setitem(FEATURES, "toy", "mvar_models.evaluation.features.pixels:Pixels")
    assert feature_network("toy").distance == "FD-pixels"


@pytest.mark.parametrize(
    "images, said",
    [
        (torch.zeros(2, 8, 8, 3), "uint8.*float32"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"\(n, H, W, 3\).*\(2, 3, 8, 8\)"),
        (torch.zeros(2, 8, 8, dtype=torch.uint8), r"\(2, 8, 8\)"),
        (torch.zeros(2, 0, 8, 3, dtype=torch.uint8), r"\(2, 0, 8, 3\)"),
    ],
)
def test_other_images_are_refused(images, said):
    with pytest.raises(ValueError, match=said):
        check_images(images)
