"""EfficientNet-Lite0: its weights are ImageNet's, and are fed as they were trained."""

import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

from mvar_models.evaluation.features import efficientnet_lite
from mvar_models.evaluation.features.efficientnet_lite import EfficientNetLite0

PALACE, DAISY = 698, 985


@pytest.fixture(scope="module")
def network():
    return EfficientNetLite0()


@pytest.mark.parametrize("photograph, label", [(0, PALACE), (1, DAISY)])
def test_photographs_are_classified(network, photograph, label):
    """A wrong order of channels, mean or filter would show here."""
    image = load_sample_images().images[photograph]
    left = (image.shape[1] - image.shape[0]) // 2
    square = torch.from_numpy(np.ascontiguousarray(image[:, left : left + image.shape[0]]))
    features = network(square[None]).features
    shares = network._network._fc(features).softmax(1)[0]
    assert shares.argmax() == label
    assert shares[label] > 0.2


def test_half_precision_stays_close(network):
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    halved = EfficientNetLite0(dtype=torch.bfloat16)(images).features
    assert halved.dtype == torch.float32
    full = network(images).features
    assert (halved - full).norm() < 0.1 * full.norm()


def test_other_weights_are_refused(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(3)}, file)
    with pytest.raises(ValueError, match=r"weights\.pth is not EfficientNet-Lite0: it has no _conv_stem"):
        EfficientNetLite0(weights=file)
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        EfficientNetLite0(weights=tmp_path / "absent.pth")


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the file ran code",))

    file = tmp_path / "trap.pth"
    torch.save({"weight": Trap()}, file)
    with pytest.raises(ValueError, match=r"trap\.pth was refused"):
        EfficientNetLite0(weights=file)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ImportError, match=r"efficientnet_lite_pytorch.*\[evaluate\]"):
        efficientnet_lite.EfficientNetLite0()
