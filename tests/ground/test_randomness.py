"""Random choices are functions of (seed, purpose, step), and every epoch sees every example once."""

import numpy as np
import pytest

from mvar_models.randomness import Purpose, batch_members, generator


@pytest.mark.parametrize("size, batch", [(10, 4), (7, 7), (3, 8)])
def test_every_epoch_sees_every_example_once(size, batch):
    drawn = np.concatenate([batch_members(5, step, batch, size) for step in range(3 * size)])
    for epoch in range(len(drawn) // size):
        assert sorted(drawn[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert not np.array_equal(drawn[:size], drawn[size : 2 * size]) or size < 4


def test_streams_are_independent_of_each_other():
    draws = {tuple(generator(s, p, t).integers(0, 2**31, 4)) for s in (0, 1) for p in Purpose for t in (0, 1)}
    assert len(draws) == 4 * len(Purpose)
