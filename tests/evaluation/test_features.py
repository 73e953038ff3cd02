"""The table of feature networks and their weights; pixels and EfficientNet-Lite0."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

from mvar_models.evaluation.features import efficientnet_lite
from mvar_models.evaluation.features.dinov2 import WEIGHTS as DINOV2
from mvar_models.evaluation.features.efficientnet_lite import EfficientNetLite0
from mvar_models.evaluation.features.inception import STATE_DICT
from mvar_models.evaluation.features.network import FEATURES, Pixels, feature_network
from mvar_models.evaluation.features.weights import WeightsFile, check_state, find_weights
from mvar_models.files import file_digest


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
    monkeypatch.setitem(FEATURES, "toy", "mvar_models.evaluation.features.network:Pixels")
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
        feature_network("pixels")(images)


CONTENT = b"not really weights"


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A file that its URL, here a file:// address, delivers; the cache is an empty folder."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    served = tmp_path / "served.pth"
    served.write_bytes(CONTENT)
    return WeightsFile("some", "w.pth", served.as_uri(), hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


def test_a_named_file_comes_first(file, tmp_path):
    named = tmp_path / "mine.pth"
    named.write_bytes(b"anything")
    assert find_weights(file, named) == named
    assert find_weights(file, str(named)) == named
    assert not file.cached.exists()


def test_nothing_is_downloaded_unless_asked(file):
    with pytest.raises(
        FileNotFoundError, match=r"weights: some needs w\.pth; name the file, or say 'download'"
    ):
        find_weights(file, None)
    assert not file.cached.parent.exists()


def test_a_download_is_kept_and_found(file):
    path = find_weights(file, "download")
    assert path == file.cached
    assert path.read_bytes() == CONTENT
    Path(file.url.removeprefix("file://")).unlink()
    assert find_weights(file, None) == find_weights(file, "download") == path


def test_another_file_under_the_url_is_refused_and_not_kept(file):
    Path(file.url.removeprefix("file://")).write_bytes(b"something else")
    with pytest.raises(ValueError, match="is not the expected file"):
        find_weights(file, "download")
    assert list(file.cached.parent.iterdir()) == []


def test_a_failed_download_is_one_line(file):
    Path(file.url.removeprefix("file://")).unlink()
    with pytest.raises(OSError, match=r"could not be downloaded .*; download it yourself") as caught:
        find_weights(file, "download")
    assert "\n" not in str(caught.value)


def test_a_damaged_cache_is_refused(file):
    find_weights(file, "download").write_bytes(CONTENT[:-1])
    for weights in (None, "download"):
        with pytest.raises(ValueError, match="has not the digest"):
            find_weights(file, weights)


def test_a_missing_file_is_named(file, tmp_path):
    for named in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"is no file; some needs w\.pth"):
            find_weights(file, named)


def test_digest_of_a_file(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(bytes(3_000_000))
    assert file_digest(path) == hashlib.sha256(bytes(3_000_000)).hexdigest()


@pytest.mark.parametrize("weights", [STATE_DICT, DINOV2], ids=lambda each: each.features)
def test_what_is_downloaded_has_a_digest_and_a_secure_address(weights):
    assert len(bytes.fromhex(weights.sha256)) == 32
    assert weights.url.startswith("https://")
    assert weights.url.endswith("/" + weights.name)


def test_states_are_checked():
    shapes = {"a": (2,), "b": (1, 3)}
    good = {"a": torch.zeros(2), "b": torch.zeros(1, 3), "more": torch.zeros(1)}
    assert set(check_state(good, shapes, Path("f"), "it")) == {"a", "b"}
    wrong = [
        ({"a": torch.zeros(2)}, "has no b"),
        ({**good, "a": [1.0, 2.0]}, "has no a"),
        ({**good, "a": torch.zeros(3)}, r"a is \[3\] torch.float32, expected \[2\] float"),
        ({**good, "b": torch.zeros(1, 3, dtype=torch.int64)}, r"torch\.int64"),
    ]
    for state, reason in wrong:
        with pytest.raises(ValueError, match=f"f is not it: .*{reason}"):
            check_state(state, shapes, Path("f"), "it")


def images_of(height, width):
    return torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (5, 16), (16, 16)])
def test_small_images_are_flattened_as_they_are(size):
    given = images_of(*size)
    assert torch.equal(Pixels()(given).features, given.flatten(1).float())


@pytest.mark.parametrize("size", [(32, 32), (64, 32), (16, 48)])
def test_larger_images_are_means_of_blocks(size):
    given = images_of(*size)
    height, width = size
    blocks = given.double().reshape(2, 16, height // 16, 16, width // 16, 3)
    expected = blocks.mean((2, 4)).flatten(1).float()
    torch.testing.assert_close(Pixels()(given).features, expected, rtol=1e-6, atol=1e-4)


def test_other_arguments_are_refused():
    with pytest.raises(ValueError, match=r"weights.*pixels.*'some\.pth'"):
        Pixels(weights="some.pth")
    with pytest.raises(ValueError, match=r"dtype must be float32.*bfloat16"):
        Pixels(dtype=torch.bfloat16)


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
