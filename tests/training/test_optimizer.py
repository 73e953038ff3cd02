"""Learning rate, weight decay, the loss scale of fp16, and the moving average of the weights."""

import pytest
import torch

from mvar_models.training.optimizer import LossScale, WeightAverage, learning_rate_factor, parameter_groups

from tiny_models import tiny_mvar


def test_learning_rate():
    factors = [learning_rate_factor(step, 1000) for step in range(1000)]
    assert factors[0] == pytest.approx(0.005)
    assert max(factors) == 1.0
    assert factors[-1] == pytest.approx(0.1)
    assert factors[20] == factors[60] == 1.0
    assert factors[80] < 1
    assert all(0 < learning_rate_factor(0, steps) <= 1 for steps in (1, 2, 3))


def test_what_is_not_decayed():
    model = tiny_mvar()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, kept = ({names[id(p)] for p in group["params"]} for group in parameter_groups(model, 0.05))
    assert {
        "start_position",
        "positions",
        "scale_embedding.weight",
        "blocks.0.attention.log_scale",
        "head.bias",
    } <= kept
    assert {
        "class_embedding.weight",
        "head.weight",
        "blocks.1.mlp.fc1.weight",
        "blocks.0.modulation.weight",
    } <= decayed
    assert decayed | kept == set(names.values())


def test_an_overflow_halves():
    scale = LossScale(enabled=True)
    assert scale.factor == 2.0**16
    scale.overflowed()
    assert scale.factor == 2.0**15
    assert scale.skipped_steps == 1


def test_2000_good_steps_double():
    scale = LossScale(enabled=True)
    for _ in range(1999):
        scale.stepped()
    assert scale.factor == 2.0**16
    scale.stepped()
    assert scale.factor == 2.0**17


def test_an_overflow_begins_the_count_again():
    scale = LossScale(enabled=True)
    for _ in range(1999):
        scale.stepped()
    scale.overflowed()
    for _ in range(1999):
        scale.stepped()
    assert scale.factor == 2.0**15
    scale.stepped()
    assert scale.factor == 2.0**16


def test_an_endless_overflow_is_an_error():
    """Down to 2^-10 it may be an unlucky start; below that something is wrong."""
    scale = LossScale(enabled=True)
    for _ in range(26):
        scale.overflowed()
    assert scale.factor == 2.0**-10
    with pytest.raises(FloatingPointError, match="overflow"):
        scale.overflowed()


def test_it_resumes():
    scale = LossScale(enabled=True)
    scale.overflowed()
    scale.stepped()
    again = LossScale(enabled=True)
    again.load_state_dict(scale.state_dict())
    assert vars(again) == vars(scale)


def test_off_it_stays_one():
    scale = LossScale(enabled=False)
    for _ in range(5000):
        scale.stepped()
    assert scale.factor == 1.0


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
    for name, value in average.average.items():
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
