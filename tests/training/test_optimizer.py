"""The learning rate over a run, and what is not decayed."""

import pytest

from mvar_models.training.optimizer import learning_rate_factor, parameter_groups

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
