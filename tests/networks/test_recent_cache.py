"""The keys and values that sampling keeps for the next scales."""

import torch

from mvar_models.networks.state import RecentCache

from adjacent_cases import SIDES, adjacent


def test_holds_the_scales_that_the_next_one_sees():
    pyramid = adjacent(1).pyramid
    cache, whole = RecentCache(pyramid), []
    with torch.no_grad():
        for scale, (h, w) in enumerate(pyramid.sides):
            for block in range(2):
                tokens = torch.full((1, h * w, 1, 4), float(scale))
                key, value = cache.extend(block, tokens, tokens + 0.5)
                expected = [s for s in (scale - 1, scale) if s >= 0 for _ in range(SIDES[s] ** 2)]
                assert key[0, :, 0, 0].tolist() == expected
                assert value[0, :, 0, 0].tolist() == [each + 0.5 for each in expected]
            whole.append(cache.num_bytes())
    # Per block the 16 tokens of the last scale but one; 16 + 36 in the workspace; 2 tensors of 16 bytes.
    assert whole[-2] == (2 * 16 + 52) * 2 * 16 and whole[-1] == 0


def test_forks_do_not_write_into_each_other():
    model = adjacent(1)
    labels = torch.tensor([0])
    with torch.no_grad():
        state = model.new_state(labels)
        model.step(state, torch.zeros(1, 0, 8), 0)
        model.step(state, torch.randn(1, 4, 8), 1)
        inputs, other = torch.randn(2, 1, 9, 8)
        twin = state.fork()
        model.step(twin, other, 2)
        third = torch.randn(1, 16, 8)
        model.step(state, inputs, 2)
        expected = model.step(state.fork(), third, 3)
        model.step(twin, third, 3)
        assert torch.equal(model.step(state, third, 3), expected)


def test_gradients_flow_through_it():
    model, labels = adjacent(1), torch.tensor([0])
    state, inputs = model.new_state(labels), torch.randn(1, 4, 8, requires_grad=True)
    model.step(state, torch.zeros(1, 0, 8), 0)
    model.step(state, inputs, 1)
    (grad,) = torch.autograd.grad(model.step(state, torch.zeros(1, 9, 8), 2).sum(), inputs)
    assert grad.abs().max() > 0
