"""scripts/inception_from_graph.py: the graph that TensorFlow would write is read back exactly."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mvar_models.evaluation.features.inception import EPSILON, load_inception

from feature_cases import random_state
from script_cases import load_script

pytest.importorskip("tensorboard", reason="its protocol buffers read graphs: the extra `test` has it")
graph_pb2 = pytest.importorskip("tensorboard.compat.proto.graph_pb2")


@pytest.fixture(scope="module")
def converter():
    return load_script("inception_from_graph")


@pytest.fixture(scope="module")
def state():
    return random_state(5)


def encoded(state, scopes, scale=True, epsilon=EPSILON):
    """The weights as a frozen graph, with other nodes around them."""
    graph = graph_pb2.GraphDef()
    graph.node.add(name="ExpandDims", op="ExpandDims", input=["Cast"])

    def constant(name, values):
        values = np.ascontiguousarray(values.numpy(), dtype="<f4")
        tensor = graph.node.add(name=name, op="Const").attr["value"].tensor
        tensor.dtype = 1
        for size in values.shape:
            tensor.tensor_shape.dim.add(size=size)
        tensor.tensor_content = values.tobytes()

    names = {
        "gamma": "weight",
        "beta": "bias",
        "moving_mean": "running_mean",
        "moving_variance": "running_var",
    }
    for layer, scope in scopes.items():
        constant(f"{scope}/conv2d_params", state[f"{layer}.conv.weight"].permute(2, 3, 1, 0))
        for name, part in names.items():
            constant(f"{scope}/batchnorm/{name}", state[f"{layer}.bn.{part}"])
        norm = graph.node.add(name=f"{scope}/batchnorm", op="BatchNormWithGlobalNormalization").attr
        norm["variance_epsilon"].f = epsilon
        norm["scale_after_normalization"].b = scale
    constant("softmax/weights", state["fc.weight"].T)
    return graph


def test_scopes_are_those_in_dumps_of_the_graph(converter):
    scopes = converter.scopes()
    assert len(scopes) == len(set(scopes.values())) == 94
    known = {
        "Conv2d_1a_3x3": "conv",
        "Conv2d_4a_3x3": "conv_4",
        "Mixed_5b.branch1x1": "mixed/conv",
        "Mixed_5b.branch5x5_2": "mixed/tower/conv_1",
        "Mixed_5b.branch3x3dbl_3": "mixed/tower_1/conv_2",
        "Mixed_5d.branch_pool": "mixed_2/tower_2/conv",
        "Mixed_6a.branch3x3": "mixed_3/conv",
        "Mixed_6a.branch3x3dbl_3": "mixed_3/tower/conv_2",
        "Mixed_6d.branch1x1": "mixed_6/conv",
        "Mixed_6e.branch7x7_3": "mixed_7/tower/conv_2",
        "Mixed_6e.branch7x7dbl_5": "mixed_7/tower_1/conv_4",
        "Mixed_7a.branch3x3_1": "mixed_8/tower/conv",
        "Mixed_7a.branch7x7x3_4": "mixed_8/tower_1/conv_3",
        "Mixed_7b.branch3x3_2a": "mixed_9/tower/mixed/conv",
        "Mixed_7c.branch3x3dbl_3b": "mixed_10/tower_1/mixed/conv_1",
        "Mixed_7c.branch_pool": "mixed_10/tower_2/conv",
    }
    assert {layer: scopes[layer] for layer in known} == known


def test_the_file_it_writes_is_the_state_dict(converter, state, tmp_path, monkeypatch):
    graph, out = tmp_path / "classify_image_graph_def.pb", tmp_path / "inception.safetensors"
    graph.write_bytes(encoded(state, converter.scopes()).SerializeToString())
    monkeypatch.setattr("sys.argv", ["inception_from_graph.py", str(graph), str(out)])
    converter.main()
    written = load_file(out)
    assert set(written) == set(state) - {"fc.bias"}
    for name, values in written.items():
        assert torch.equal(values, state[name]), name
    torch.save(state, tmp_path / "w.pth")
    first, second = load_inception(tmp_path / "w.pth").state_dict(), load_inception(out).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_gamma_counts_only_where_the_graph_says_so(converter, state):
    unscaled = converter.state_of(encoded(state, converter.scopes(), scale=False))
    assert (unscaled["Mixed_6d.branch1x1.bn.weight"] == 1).all()
    assert torch.equal(unscaled["Mixed_6d.branch1x1.bn.bias"], state["Mixed_6d.branch1x1.bn.bias"])


def test_another_graph_is_refused(converter, state):
    with pytest.raises(ValueError, match=r"conv/batchnorm has epsilon 0.01, expected 0.001"):
        converter.state_of(encoded(state, converter.scopes(), epsilon=0.01))
    graph = encoded(state, converter.scopes())
    del graph.node[-1]
    with pytest.raises(ValueError, match="no node 'softmax/weights'"):
        converter.state_of(graph)
