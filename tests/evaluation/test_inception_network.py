"""Inception against torch-fidelity's class on shared random weights, in every output."""

import importlib
import sys
import types
from pathlib import Path

import pytest
import torch

from mvar_models.evaluation.features.inception_weights import load_inception

from inception_cases import random_state


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(random_state(11), path)
    return path


@pytest.fixture(scope="module")
def peer(weights):
    """torch-fidelity's extractor. Its package imports torchvision, which its own network does not need."""
    # Not among the other packages: its wheel also installs a package "tests", which would hide this one.
    found = Path(sys.prefix) / "peers" / "torch_fidelity"
    if not found.is_dir():
        pytest.skip("torch-fidelity is not installed: `make test` tries it, see PEERS in Makefile")
    package = types.ModuleType("torch_fidelity")
    package.__path__ = [str(found)]
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
    found = load_inception(weights)(images)
    # sFID's maps are those after batch norm and ReLU; the TF program flattens them channels last.
    spatial = maps[0][0, :7].permute(1, 2, 0).reshape(1, 2023)
    assert spatial.min() >= 0
    for name, ours, theirs in (
        ("features", found.features, features),
        ("spatial", found.spatial, spatial),
        ("logits", found.logits, logits),
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
    found = network(images)
    assert network.fc.weight.dtype is torch.float32
    assert network.layer("Mixed_5b.branch1x1").weight.dtype is torch.bfloat16
    for name in ("features", "spatial", "logits"):
        ours, theirs = getattr(found, name), getattr(exact, name)
        assert ours.dtype is torch.float32
        assert 0 < (ours - theirs).norm() / theirs.norm() < 0.05, name
