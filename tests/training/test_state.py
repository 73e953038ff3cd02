"""A checkpoint's tensors: what is written, and that training continues from them with the same bits."""

import copy

import pytest
import torch

from mvar_models.checkpoints.tensor_files import read_state
from mvar_models.training.optimizer import WeightAverage
from mvar_models.training.state import TrainingState, prepare_optimizer


class Trained:
    """A linear layer with all that a checkpoint holds."""

    def __init__(self, model, prepared=True):
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        if prepared:
            prepare_optimizer(self.optimizer)
        self.average = WeightAverage(model, 0.5)
        self.state = TrainingState(model, self.optimizer, self.average)

    def step(self, inputs):
        self.optimizer.zero_grad()
        self.model(inputs).square().sum().backward()
        self.optimizer.step()
        self.average.update(1)

    def tensors(self):
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        return [*self.model.state_dict().values(), *self.average.average.values(), *moments]


def assert_same_bits(first, second):
    pairs = list(zip(first.tensors(), second.tensors(), strict=True))
    assert len(pairs) == 10
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.fixture
def layer(seed):
    return torch.nn.Linear(3, 2)


def test_moments_are_those_that_the_first_step_would_make(layer):
    prepared, plain = Trained(copy.deepcopy(layer)), Trained(layer, prepared=False)
    inputs = torch.randn(4, 3)
    for trained in (prepared, plain):
        trained.step(inputs)
    assert_same_bits(prepared, plain)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_training_continues_with_the_same_bits(layer, tmp_path, steps):
    """Also from a checkpoint of a run that has taken no step, as when fp16 skips the first ones."""
    inputs = torch.randn(5, 4, 3)
    straight, resumed = Trained(layer), Trained(torch.nn.Linear(3, 2))
    for index in range(steps):
        straight.step(inputs[index])
    straight.state.save(tmp_path)
    resumed.state.load(tmp_path)
    assert_same_bits(straight, resumed)
    for trained in (straight, resumed):
        trained.step(inputs[4])
    assert_same_bits(straight, resumed)


def test_files_and_names_are_stable(layer, tmp_path):
    Trained(layer).state.save(tmp_path)
    names = {path.name: set(read_state(path)) for path in tmp_path.iterdir()}
    moments = ("step", "exp_avg", "exp_avg_sq")
    assert names == {
        "model.safetensors": {"weight", "bias"},
        "average.safetensors": {"weight", "bias"},
        "optimizer.safetensors": {f"{moment}.{name}" for moment in moments for name in ("weight", "bias")},
    }


def test_another_model_s_checkpoint_is_refused(layer, tmp_path):
    Trained(layer).state.save(tmp_path)
    with pytest.raises(ValueError, match=r"model.safetensors .*bias"):
        Trained(torch.nn.Linear(3, 2, bias=False)).state.load(tmp_path)
