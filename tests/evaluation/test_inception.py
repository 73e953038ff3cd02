"""The features `inception-tf`: the network beside torch-fidelity's, its weights, and TensorFlow's resize."""

import importlib
import math
import sys
import types
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from mvar_models.evaluation.features.inception import (
    BLOCKS,
    EPSILON,
    FEATURES,
    STATE_DICT,
    STEM,
    InceptionV3,
    fold,
    load_inception,
    tf1_resize,
)
from mvar_models.evaluation.features.network import feature_network
from mvar_models.files import file_digest

from feature_cases import random_state


@pytest.fixture(scope="module")
def state():
    return random_state(5)


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory):
    """As published: with the counters that batch norm keeps, which nothing needs."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save({**state, "Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(3)}, path)
    return path


def test_images_give_all_outputs(weights, seed):
    network = feature_network("inception-tf", weights=weights)
    assert (network.name, network.distance, network.dimension) == ("inception-tf", "FID", 2048)
    assert network.weights == file_digest(weights)
    images = torch.randint(0, 256, (2, 20, 24, 3), dtype=torch.uint8)
    outputs = network(images)
    expected = load_inception(weights)(images.permute(0, 3, 1, 2))
    for name, size in (("features", 2048), ("spatial", 2023), ("logits", 1008)):
        values = getattr(outputs, name)
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


@pytest.fixture(scope="module")
def peer(weights):
    """torch-fidelity's extractor. Its package imports torchvision, which its own network does not need."""
    # Not among the other packages: its wheel also installs a package "tests", which would hide this one.
    folder = Path(sys.prefix) / "peers" / "torch_fidelity"
    if not folder.is_dir():
        pytest.skip("torch-fidelity is not installed: `make test` tries it, see PEERS in Makefile")
    package = types.ModuleType("torch_fidelity")
    package.__path__ = [str(folder)]
    before = {name: module for name, module in sys.modules.items() if name.startswith("torch_fidelity")}
    sys.modules["torch_fidelity"] = package
    try:
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        return module.FeatureExtractorInceptionV3(
            "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
        )
    finally:
        for name in [name for name in sys.modules if name.startswith("torch_fidelity")]:
            del sys.modules[name]
        sys.modules.update(before)


@torch.no_grad()
@pytest.mark.parametrize("side", [32, 64, 256, 512])
def test_every_output_is_torch_fidelitys(peer, weights, side, seed):
    images = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8)
    maps = []
    hook = peer.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: maps.append(output))
    features, logits = peer(images)
    hook.remove()
    outputs = load_inception(weights)(images)
    # sFID's maps are those after batch norm and ReLU; the TF program flattens them channels last.
    spatial = maps[0][0, :7].permute(1, 2, 0).reshape(1, 2023)
    assert spatial.min() >= 0
    for name, ours, theirs in (
        ("features", outputs.features, features),
        ("spatial", outputs.spatial, spatial),
        ("logits", outputs.logits, logits),
    ):
        assert ours.shape == theirs.shape, name
        assert theirs.std() > 0.1, name
        difference = (ours - theirs).abs().max().item()
        assert difference <= 1e-4, f"{name} differ by {difference:.2g}, of {theirs.abs().max():.3g}"


@torch.no_grad()
def test_half_precision_is_near_and_leaves_the_rest_float32(weights, seed):
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    exact = load_inception(weights)(images)
    network = load_inception(weights).convolve_in(torch.bfloat16)
    outputs = network(images)
    assert network.fc.weight.dtype is torch.float32
    assert network.layer("Mixed_5b.branch1x1").weight.dtype is torch.bfloat16
    for name in ("features", "spatial", "logits"):
        ours, theirs = getattr(outputs, name), getattr(exact, name)
        assert ours.dtype is torch.float32
        assert 0 < (ours - theirs).norm() / theirs.norm() < 0.05, name


def test_folding_is_batch_norm(state):
    layer = "Mixed_6b.branch7x7_2"
    folded = fold(state)
    maps = torch.randn(2, state[f"{layer}.conv.weight"].shape[1], 9, 9, dtype=torch.float64)
    weight, bias = folded[f"{layer}.weight"].double(), folded[f"{layer}.bias"].double()
    convolved = torch.nn.functional.conv2d(maps, weight, bias)
    plain = torch.nn.functional.conv2d(maps, state[f"{layer}.conv.weight"].double())
    parts = (
        state[f"{layer}.bn.{part}"].double() for part in ("running_mean", "running_var", "weight", "bias")
    )
    expected = torch.nn.functional.batch_norm(plain, *parts, eps=EPSILON)
    assert (convolved - expected).abs().max() < 1e-5
    assert set(folded) == set(InceptionV3().state_dict())


def test_torchvisions_inception_is_told_apart(state, tmp_path):
    path = tmp_path / "inception_v3_google.pth"
    torch.save({**state, "fc.weight": torch.zeros(1000, 2048)}, path)
    with pytest.raises(
        ValueError, match=r"torchvision's Inception .*get pt_inception-2015-12-05-6726825d\.pth"
    ):
        load_inception(path)


def test_other_state_dicts_are_refused(state, tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"layer.weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="not the Inception of the 2015 TensorFlow graph: it has no"):
        load_inception(path)
    torch.save({**state, "Mixed_7c.branch1x1.bn.bias": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"Mixed_7c.branch1x1.bn.bias is \[3\]"):
        load_inception(path)


def test_a_tensorflow_graph_is_sent_to_the_converter(tmp_path):
    (tmp_path / "classify_image_graph_def.pb").write_bytes(b"x")
    with pytest.raises(
        ValueError, match=r"TensorFlow graph; convert it with scripts/inception_from_graph.py"
    ):
        load_inception(tmp_path / "classify_image_graph_def.pb")


def width_after(block, width):
    return sum(
        sum(unit.channels for unit in branch.fork) or (branch.units[-1].channels if branch.units else width)
        for branch in BLOCKS[block]
    )


def test_widths_are_those_of_the_paper():
    width, widths = STEM[-1].channels, []
    for block in BLOCKS:
        width = width_after(block, width)
        widths.append(width)
    assert widths == [256, 288, 288, 768, 768, 768, 768, 768, 1280, 2048, FEATURES]


def ramp(side):
    """A pixel's value is 1000 times its row plus its column, which bilinear weights leave exact."""
    return (1000.0 * torch.arange(side)[:, None] + torch.arange(side))[None, None].double()


# Side of the image, row and column of the result, and the value by hand: row i lies at i * side / 299, and
# what lies beyond the last row or column is that row or column.
BY_HAND = [
    (32, 0, 0, 0),
    (32, 1, 0, 1000 * 32 / 299),  # 0.107 of the way from row 0 to row 1; half-pixel centres would give 0
    (32, 149, 0, 1000 * (15 + 283 / 299)),  # 149 * 32 = 4768 = 15 * 299 + 283
    (32, 0, 289, 30 + 278 / 299),  # 289 * 32 = 9248 = 30 * 299 + 278
    (32, 290, 290, 1001 * 31),  # 290 * 32 = 9280 = 31 * 299 + 11: in the last row and column, nothing beyond
    (32, 298, 298, 1001 * 31),
    (64, 150, 7, 1000 * (32 + 32 / 299) + 1 + 149 / 299),  # 9600 = 32 * 299 + 32; 448 = 299 + 149
    (64, 294, 295, 1000 * (62 + 278 / 299) + 63),  # 18816 = 62 * 299 + 278; 18880 = 63 * 299 + 43
    (256, 150, 298, 1000 * (128 + 128 / 299) + 255),  # 38400 = 128 * 299 + 128; 76288 = 255 * 299 + 43
    (256, 297, 3, 1000 * (254 + 86 / 299) + 2 + 170 / 299),  # 76032 = 254 * 299 + 86; 768 = 2 * 299 + 170
    (
        512,
        1,
        2,
        1000 * (1 + 213 / 299) + 3 + 127 / 299,
    ),  # reduced without antialiasing: two pixels of the row
    (512, 298, 299 // 2, 1000 * (510 + 86 / 299) + 255 + 43 / 299),  # 152576 = 510 * 299 + 86
]


@pytest.mark.parametrize("side, row, column, expected", BY_HAND)
def test_pixels_worked_out_by_hand(side, row, column, expected):
    resized = tf1_resize(ramp(side), 299)
    # Positions are float32, as TensorFlow computes them: 512 px leave an error of 512 / 2^24 of a pixel.
    assert resized[0, 0, row, column].item() == pytest.approx(expected, abs=0.1)
    assert resized.shape == (1, 1, 299, 299)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (256, 256), (512, 512), (37, 301), (1, 1), (299, 299)])
def test_every_pixel_against_the_rule_in_fractions(size, seed):
    """Random images in float64, with positions rounded to float32 as TensorFlow rounds them."""
    height, width = size
    image = torch.rand(height, width, dtype=torch.float64) * 255
    resized = tf1_resize(image[None, None], 299)[0, 0]

    def places(length):
        step = np.float32(length) / np.float32(299)
        exact = [Fraction(float(np.float32(index) * step)) for index in range(299)]
        return [(min(math.floor(at), length - 1), at - min(math.floor(at), length - 1)) for at in exact]

    rng = np.random.default_rng(seed)
    rows, columns = places(height), places(width)
    for row, column in [(0, 0), (298, 298), *rng.integers(0, 299, (300, 2)).tolist()]:
        (top, down), (left, across) = rows[row], columns[column]
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        expected = sum(
            float(weight) * image[r, c].item()
            for r, c, weight in (
                (top, left, (1 - down) * (1 - across)),
                (top, right, (1 - down) * across),
                (bottom, left, down * (1 - across)),
                (bottom, right, down * across),
            )
        )
        assert resized[row, column].item() == pytest.approx(expected, abs=1e-9)


def test_the_same_size_is_the_same_image(seed):
    images = torch.randint(0, 256, (2, 3, 299, 299)).float()
    assert torch.equal(tf1_resize(images, 299), images)


def test_channels_and_images_are_apart(seed):
    images = torch.rand(2, 3, 20, 30)
    whole = tf1_resize(images, 50)
    for image in range(2):
        for channel in range(3):
            alone = tf1_resize(images[image : image + 1, channel : channel + 1], 50)
            assert torch.equal(whole[image, channel], alone[0, 0])


def test_it_is_not_pytorchs_rule():
    """Half-pixel centres, the usual mistake, are another image."""
    image = ramp(32).float()
    theirs = torch.nn.functional.interpolate(image, (299, 299), mode="bilinear", align_corners=False)
    assert (tf1_resize(image, 299) - theirs).abs().max() > 100
