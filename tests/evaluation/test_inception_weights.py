"""Inception's weights: a state dict and a TF graph of the same numbers give the same network."""

import numpy as np
import pytest
import torch

from mvar_models.evaluation.features.inception_layout import EPSILON, tf_scopes
from mvar_models.evaluation.features.inception_network import InceptionV3
from mvar_models.evaluation.features.inception_weights import (
    fold,
    graph_state,
    load_inception,
    state_shapes,
)

from inception_cases import encoded_graph, random_state
from tf_graph_cases import batch_norm, constant


@pytest.fixture(scope="module")
def state():
    return random_state(5)


@pytest.fixture(scope="module")
def graph(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "classify_image_graph_def.pb"
    path.write_bytes(encoded_graph(state))
    return path


@pytest.fixture(scope="module")
def shapes():
    with torch.device("meta"):
        return state_shapes(InceptionV3())


def test_the_graph_is_read_back_exactly(state, graph, shapes):
    found = graph_state(graph, shapes)
    assert set(found) == set(state) - {"fc.bias"}
    for name, values in found.items():
        assert torch.equal(values, state[name]), name


def test_both_files_give_one_network(state, graph, tmp_path):
    # As published: with the counters that batch norm keeps, which nothing needs.
    torch.save({**state, "Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(3)}, tmp_path / "w.pth")
    first, second = load_inception(tmp_path / "w.pth").state_dict(), load_inception(graph).state_dict()
    assert list(first) == list(second)
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_gamma_counts_only_where_the_graph_says_so(state, graph, shapes, tmp_path):
    path = tmp_path / "unscaled.pb"
    path.write_bytes(encoded_graph(state, scale=False))
    found = graph_state(path, shapes)
    for name, values in found.items():
        expected = torch.ones_like(values) if name.endswith("bn.weight") else state[name]
        assert torch.equal(values, expected), name


def test_folding_is_batch_norm(state):
    layer = "Mixed_6b.branch7x7_2"
    folded = fold(state)
    maps = torch.randn(2, state[f"{layer}.conv.weight"].shape[1], 9, 9, dtype=torch.float64)
    weight, bias = folded[f"{layer}.weight"].double(), folded[f"{layer}.bias"].double()
    found = torch.nn.functional.conv2d(maps, weight, bias)
    plain = torch.nn.functional.conv2d(maps, state[f"{layer}.conv.weight"].double())
    parts = (
        state[f"{layer}.bn.{part}"].double() for part in ("running_mean", "running_var", "weight", "bias")
    )
    expected = torch.nn.functional.batch_norm(plain, *parts, eps=EPSILON)
    assert (found - expected).abs().max() < 1e-5
    assert set(folded) == set(InceptionV3().state_dict())


def test_every_layer_of_the_graph_is_read(shapes):
    layers = {name.removesuffix(".conv.weight") for name in shapes if name.endswith(".conv.weight")}
    assert layers == set(tf_scopes())


def replaced(graph, state, old: bytes, new: bytes, tmp_path):
    data = graph.read_bytes()
    assert data.count(old) == 1
    path = tmp_path / "changed.pb"
    path.write_bytes(data.replace(old, new))
    return path


def test_another_graph_is_refused(state, graph, tmp_path):
    scope = "mixed_4/tower/conv/batchnorm"
    other_epsilon = replaced(graph, state, batch_norm(scope), batch_norm(scope, epsilon=0.01), tmp_path)
    with pytest.raises(ValueError, match=r"'mixed_4/tower/conv/batchnorm' has epsilon 0.01, expected 0.001"):
        load_inception(other_epsilon)
    weights = np.ascontiguousarray(state["fc.weight"].T.numpy())
    old = constant("softmax/weights", weights)
    fewer_classes = replaced(
        graph, state, old, constant("softmax/weights", weights[:, :1000].copy()), tmp_path
    )
    with pytest.raises(ValueError, match=r"shape \[2048, 1000\], expected \[2048, 1008\]"):
        load_inception(fewer_classes)
    without = replaced(graph, state, old, b"", tmp_path)
    with pytest.raises(ValueError, match=r"no node 'softmax/weights': it is cut short"):
        load_inception(without)


def test_a_truncated_graph_is_refused(graph, tmp_path):
    path = tmp_path / "cut.pb"
    path.write_bytes(graph.read_bytes()[: 40 << 20])
    with pytest.raises(ValueError, match="no complete TensorFlow graph: it is cut short"):
        load_inception(path)


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
