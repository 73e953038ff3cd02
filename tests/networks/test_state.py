"""The KV cache appends in order, and a fork goes its own way."""

import torch

from mvar_models.networks.state import KVCache, ScaleState

from tiny_models import tiny_var


def test_a_cache_appends_per_block():
    cache, parts = KVCache(), [torch.randn(2, n, 1, 4) for n in (1, 4, 9)]
    for part in parts:
        key, value = cache.extend(0, part, -part)
    assert torch.equal(key, torch.cat(parts, dim=1))
    assert torch.equal(value, -key)
    key, _ = cache.extend(1, parts[0], parts[0])
    assert torch.equal(key, parts[0])


def test_a_fork_shares_the_past_and_not_the_future():
    state = ScaleState(torch.zeros(1, 4), KVCache())
    first = torch.randn(1, 2, 1, 4)
    state.cache.extend(0, first, first)
    fork = state.fork()
    second = torch.randn(1, 3, 1, 4)
    assert fork.cache.extend(0, second, second)[0].shape[1] == 5
    assert torch.equal(state.cache.entries[0][0], first)


def test_a_state_without_cache_forks_too():
    state = ScaleState(torch.zeros(1, 4))
    assert state.fork().cache is None


@torch.no_grad()
def test_steps_of_a_fork_repeat_those_of_the_original():
    model = tiny_var()
    state = model.new_state(torch.tensor([2]))
    model.step(state, torch.zeros(1, 0, 4), 0)
    inputs = torch.randn(1, 4, 4)
    assert torch.equal(model.step(state.fork(), inputs, 1), model.step(state, inputs, 1))
    assert state.cache.entries[0][0].shape[1] == 5


def test_what_is_carried_from_scale_to_scale():
    """A subclass has fields of its own, so it carries something unless it says otherwise."""

    class Own(ScaleState):
        pass

    rows = torch.zeros(4, 8)
    assert not ScaleState(rows).carries
    assert ScaleState(rows, KVCache()).carries
    assert Own(rows).carries


def test_the_first_rows_of_a_state():
    rows = torch.randn(4, 8)
    assert torch.equal(ScaleState(rows).first(2).class_embedding, rows[:2])
