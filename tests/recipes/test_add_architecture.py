"""CONTRIBUTING's recipe: an architecture with its own state is one file and one row of ARCHITECTURES."""

import importlib

import numpy as np
import pytest
import torch

from mvar_models.pipeline import Pipeline, pipeline_for
from mvar_models.registry import ARCHITECTURES, Architecture, architecture

from tiny_models import NAMES, SIDES, tiny_sample, tiny_vqvae

TOY = '''
"""An MVAR that also sees the mean input of all coarser scales, carried along as a vector per image."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mvar_models.config import MVARConfig
from mvar_models.networks.mvar import MVAR
from mvar_models.networks.state import ScaleState


@dataclass(frozen=True)
class RecurrentConfig(MVARConfig):
    model_type: ClassVar[str] = "recurrent"

    decay: float = 0.5


@dataclass
class History(ScaleState):
    vector: Tensor | None = None


class Recurrent(MVAR):
    config_class = RecurrentConfig

    def __init__(self, config=None):
        super().__init__(config)
        self.from_history = nn.Linear(self.config.z_channels, self.config.width)

    def new_state(self, labels):
        embedding = self.class_embedding(labels)
        return History(embedding, vector=embedding.new_zeros(len(labels), self.config.z_channels))

    def step(self, state, inputs, scale):
        hidden = self.embed(state.class_embedding, inputs, range(scale, scale + 1))
        hidden = hidden + self.from_history(state.vector).unsqueeze(1)
        if scale:
            state.vector = self.config.decay * state.vector + inputs.mean(1)
        return self.run_blocks(hidden, state.class_embedding, self.step_neighborhood(scale))

    def hidden_states(self, labels, scale_inputs, scales, path_keep=None):
        state, parts = self.new_state(labels), []
        for scale in range(len(self.config.sides)):
            tokens = self.pyramid.scale_slice(scale)
            inputs = scale_inputs[:, max(tokens.start - 1, 0) : tokens.stop - 1]
            parts.append(self.step(state, inputs, scale))
        return torch.cat(parts[scales.start : scales.stop], dim=1), state.class_embedding
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The one file and the one row."""
    (tmp_path / "toy_architecture.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    row = Architecture(
        name="recurrent",
        title="Recurrent",
        config="toy_architecture:RecurrentConfig",
        network="toy_architecture:Recurrent",
        pipeline="mvar_models.pipeline:Pipeline",
        paper="0000.00000",
        description="A toy.",
    )
    monkeypatch.setitem(ARCHITECTURES, "recurrent", row)
    return architecture("recurrent")


@pytest.fixture
def model(toy):
    torch.manual_seed(0)
    config = toy.config_class()(
        depth=2, width=32, num_heads=2, num_classes=3, vocab_size=24, z_channels=4, sides=SIDES,
        class_names=NAMES, kernel_size=3, dense_scales=2, decay=0.25,
    )  # fmt: skip
    model = toy.network_class()(config)
    with torch.no_grad():
        model.head.weight.normal_()
        model.from_history.weight.normal_()
    return model.eval()


def test_its_state_is_carried_from_scale_to_scale(model):
    """Sampling scale by scale gives the logits of teacher forcing, which depend on the history."""
    result = tiny_sample(model, [0, 2], [5, 6], guidance_scale=0.0)
    inputs = tiny_vqvae().quantizer.scale_inputs(result.indices)
    with torch.no_grad():
        logits = model(torch.tensor([0, 2]), inputs)
        model.from_history.weight.zero_()
        without = model(torch.tensor([0, 2]), inputs)
    assert torch.allclose(logits[:, -16:], result.final_logits, atol=1e-4)
    assert not torch.allclose(without[:, -16:], result.final_logits, atol=1e-2)


def test_a_fork_does_not_change_the_state_it_came_from(model):
    state = model.new_state(torch.tensor([0]))
    with torch.no_grad():
        model.step(state, torch.randn(1, 0, 4), 0)
        vector = state.vector.clone()
        model.step(state.fork(), torch.randn(1, 4, 4), 1)
    assert torch.equal(state.vector, vector)


def test_it_trains(model):
    indices = torch.randint(24, (2, model.config.length))
    model.loss(
        torch.tensor([0, 1]), tiny_vqvae().quantizer.scale_inputs(indices).detach(), indices
    ).backward()
    assert model.from_history.weight.grad.any()


@pytest.mark.parametrize("load", [pipeline_for, Pipeline.from_pretrained])
def test_it_is_saved_and_sampled_by_the_pipeline_of_all(model, tmp_path, load):
    pipeline = Pipeline(model, tiny_vqvae())
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = load(tmp_path / "saved")
    assert type(loaded.model) is type(model)
    assert loaded.model.config == model.config
    expected = pipeline([0, "bee", 2], seed=11, output_type="np").images
    assert np.array_equal(loaded([0, 1, 2], seed=11, output_type="np").images, expected)
