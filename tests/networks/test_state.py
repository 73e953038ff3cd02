"""The KV cache appends in order, in buffers of a known size, and a fork goes its own way.

Constants are computed once, and again when what they were made from changes.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mvar_models import VAR
from mvar_models.networks.state import Constants, KVCache, RecentCache, ScaleState

from adjacent_cases import SIDES, adjacent
from tiny_models import tiny_markov_var, tiny_mvar, tiny_var


def shared_adaln():
    return VAR(tiny_var().config.replace(shared_adaln=True)).eval()


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


LENGTHS = (1, 4, 9)


def fed(cache, blocks, parts):
    """Extend every block by each part in turn; return what the calls returned, copied at once."""
    return [
        [tuple(each.clone() for each in cache.extend(block, part + block, -part - block)) for block in blocks]
        for part in parts
    ]


@pytest.mark.parametrize("blocks", [(0,), (0, 1, 2)])
@torch.no_grad()
def test_buffers_give_what_concatenation_gives(blocks):
    """The second use is that of a state that starts over."""
    parts = [torch.randn(2, n, 3, 4) for n in LENGTHS]
    cache = KVCache(length=14, last=9)
    for _ in range(2):
        for got, wanted in zip(fed(cache, blocks, parts), fed(KVCache(), blocks, parts), strict=True):
            for mine, theirs in zip(got, wanted, strict=True):
                assert torch.equal(mine[0], theirs[0]) and torch.equal(mine[1], theirs[1])
        assert cache.entries == {}


@torch.no_grad()
def test_buffers_are_allocated_once_and_leave_out_the_last_scale():
    """All but the first block's, which is where the last scale's keys and values of all blocks lie."""
    parts, blocks = [torch.randn(2, n, 3, 4) for n in LENGTHS], range(4)
    cache, seen = KVCache(length=14, last=9), []
    per_token = 2 * 2 * 3 * 4 * 4
    for part in parts[:-1]:
        fed(cache, blocks, [part])
        seen.append([each.data_ptr() for block in blocks for each in cache.entries[block]])
        assert cache.num_bytes() == per_token * (14 + 3 * 5)
    assert seen[0] == seen[1]
    whole = {cache.extend(block, parts[-1], parts[-1])[0].data_ptr() for block in blocks}
    assert whole == {seen[0][0]}
    assert cache.num_bytes() == 0


@pytest.mark.parametrize("when", [0, 1, 2])
@torch.no_grad()
def test_forks_of_buffers_go_their_own_ways(when):
    """Whichever of the two goes on first, and at whichever scale they part."""
    parts, blocks = [torch.randn(2, n, 3, 4) for n in LENGTHS], (0, 1)
    expected = fed(KVCache(), blocks, parts)
    cache = KVCache(length=14, last=9)
    fed(cache, blocks, parts[:when])
    fork = cache.fork()
    for mine, other in ((fork, -1), (cache, 1)):
        got = fed(mine, blocks, [other * part for part in parts[when:]])
        for then, wanted in zip(got, expected[when:], strict=True) if other == 1 else ():
            for found, theirs in zip(then, wanted, strict=True):
                assert torch.equal(found[0], theirs[0]) and torch.equal(found[1], theirs[1])


def test_with_gradients_keys_are_concatenated():
    """Autograd keeps what attention read, so nothing may be written over it."""
    cache, parts = KVCache(length=14, last=9), [torch.randn(1, n, 1, 4, requires_grad=True) for n in LENGTHS]
    total = sum(key.square().sum() for part in parts for key in cache.extend(0, part, part))
    total.backward()
    assert torch.allclose(parts[0].grad, 12 * parts[0])


@torch.no_grad()
def test_constants_are_computed_once():
    constants, calls = Constants(torch.zeros(1, 4)), []
    for _ in range(2):
        assert constants.once("name", (), lambda: calls.append(0) or 7) == 7
    assert constants.once("other", (), lambda: 8) == 8
    assert calls == [0]


@torch.no_grad()
def test_every_modulation_runs_once_per_batch(monkeypatch):
    """And those of the first rows are of the whole batch."""
    model, seen, linear = tiny_var(), [], F.linear
    weights = [block.modulation.weight for block in model.blocks] + [model.head_modulation.weight]

    def counted(inputs, weight, bias=None):
        seen.extend([inputs.shape[0]] if any(weight is each for each in weights) else [])
        return linear(inputs, weight, bias)

    monkeypatch.setattr(F, "linear", counted)
    state = model.new_state(torch.tensor([0, 1]))
    for scale, tokens in enumerate((0, 4, 16)):
        hidden = model.step(state, torch.randn(2, tokens, 4), scale)
        logits = model.logits(hidden, state.class_embedding, slice(0, 2), state.constants)
        assert torch.equal(logits, model.logits(hidden, state.class_embedding))
    assert seen == [2, 2, 2, 2, 2, 2]  # two blocks, the head, and three times by `logits` itself


def in_place(module):
    for parameter in module.parameters():
        parameter.mul_(2)


def new_data(module):
    for parameter in module.parameters():
        parameter.data = parameter.data * 2


def new_parameters(module):
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(parameter * 2))


def loaded(module):
    module.load_state_dict({name: value * 2 for name, value in module.state_dict().items()})


def hooked(module):
    module.register_forward_hook(lambda module, args, output: output * 2)


CHANGES = (in_place, new_data, new_parameters, loaded, hooked, nn.Module.double, nn.Module.bfloat16)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("make", [tiny_var, tiny_mvar, tiny_markov_var, shared_adaln])
@torch.no_grad()
def test_constants_go_with_what_they_were_made_from(make, change):
    """A callback may change a network between two scales: what follows is as if nothing had been kept."""
    count = len(list(make().modules()))
    for index in range(count):
        model = make()
        module = list(model.modules())[index]
        if change is hooked and type(module).forward is nn.Module.forward:
            continue
        state = model.new_guided_state(torch.tensor([0, 1]))
        hidden = model.step(state, torch.randn(4, 0, 4), 0)
        model.logits(hidden, state.class_embedding, slice(0, 2), state.constants)
        change(module)
        fresh = replace(state.fork(), constants=Constants(state.class_embedding))
        inputs, found = torch.randn(4, 4, 4), []
        for each in (state, fresh):
            try:
                hidden = model.step(each, inputs, 1)
                found.append(
                    (hidden, model.logits(hidden, each.class_embedding, slice(0, 2), each.constants))
                )
            except (RuntimeError, TypeError, ValueError) as error:  # types that do not meet
                found.append(str(error))
        same = found[0] == found[1] if str in map(type, found) else all(map(torch.equal, *found))
        assert same, f"{type(module).__name__} {index}: what was kept outlived the change"


def test_a_recent_cache_holds_the_scales_that_the_next_one_sees():
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


def test_forks_of_a_recent_cache_do_not_write_into_each_other():
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


def test_gradients_flow_through_a_recent_cache():
    model, labels = adjacent(1), torch.tensor([0])
    state, inputs = model.new_state(labels), torch.randn(1, 4, 8, requires_grad=True)
    model.step(state, torch.zeros(1, 0, 8), 0)
    model.step(state, inputs, 1)
    (grad,) = torch.autograd.grad(model.step(state, torch.zeros(1, 9, 8), 2).sum(), inputs)
    assert grad.abs().max() > 0
