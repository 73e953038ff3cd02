"""The moving average of weights: its closed form, and that it comes and goes without a trace."""

import pytest
import torch

from mvar_models.training.ema import WeightAverage


def test_closed_form_of_three_updates(seed):
    model = torch.nn.Linear(3, 2)
    average = WeightAverage(model, 0.5)
    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for step, decay in ((1, 2 / 11), (2, 3 / 12), (3, 4 / 13)):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_()
                expected[name] = decay * expected[name] + (1 - decay) * parameter
        average.update(step)
    for name, value in average.tensors().items():
        assert torch.allclose(value, expected[name], atol=1e-6), name


@pytest.mark.parametrize("step, decay", [(7, 8 / 17), (8, 0.5), (1000, 0.5)])
def test_the_decay_grows_to_the_one_asked_for(seed, step, decay):
    """At step 8, (1 + step) / (10 + step) is 0.5."""
    model = torch.nn.Linear(3, 2)
    average = WeightAverage(model, 0.5)
    average.average["weight"].zero_()
    average.update(step)
    assert torch.allclose(average.average["weight"], (1 - decay) * model.weight.detach())


def test_applied_and_taken_back(seed):
    model = torch.nn.Linear(3, 2)
    average = WeightAverage(model, 0.5)
    with torch.no_grad():
        model.weight.normal_()
    weights, averages = model.weight.detach().clone(), average.average["weight"].clone()
    assert not torch.equal(weights, averages)
    with pytest.raises(KeyError), average.applied():
        assert torch.equal(model.weight, averages)
        raise KeyError("also after an error inside")
    assert torch.equal(model.weight, weights)
    assert torch.equal(average.average["weight"], averages)


def test_the_average_is_no_view_of_the_weights(seed):
    model = torch.nn.Linear(3, 2)
    average = WeightAverage(model, 0.9)
    before = average.average["weight"].clone()
    with torch.no_grad():
        model.weight.add_(1)
    assert torch.equal(average.average["weight"], before)
    assert not average.average["weight"].requires_grad
