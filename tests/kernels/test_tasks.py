"""Tasks cover a call once, whoever works on it."""

import itertools
import random

import pytest
import torch

from mvar_kernels import Neighborhood, Pyramid
from mvar_kernels.backends.tiled import tasks
from mvar_kernels.backends.tiled.tasks import (
    Cut,
    TileTask,
    attention_tasks,
    cut_for,
    groups,
    token_tasks,
)
from mvar_kernels.backends.tiled.workers import workers_and_threads

from kernel_cases import random_neighborhood


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_each_query_of_each_head_is_in_one_task(seed):
    rng = random.Random(seed)
    for _ in range(20):
        neighborhood, batch, heads = random_neighborhood(rng), rng.randint(1, 5), rng.randint(1, 5)
        query = torch.empty(batch, neighborhood.num_queries, heads, 8)
        cut = rng.choice((Cut(1, 1), Cut(1, 4), Cut(2, 1), Cut(12, 2)))
        count = torch.zeros(batch, neighborhood.num_queries, heads)
        for task in attention_tasks(neighborhood.by_queries(), query, cut, rng.choice((1, 1 << 12, 1 << 20))):
            if isinstance(task, TileTask):
                real = task.layout.real
                own = torch.ones_like(task.layout.queries, dtype=torch.bool) if real is None else real
                which = task.layout.queries[task.tiles][own[task.tiles]]
                count[task.batch, which] += 1
            else:
                count[task.batch, task.block.query_slice, task.heads] += 1
        assert (count == 1).all(), (neighborhood, cut)


def test_blocks_of_a_group_that_share_keys_are_tiled(seed):
    rng = random.Random(seed)
    for _ in range(40):
        neighborhood = random_neighborhood(rng)
        found = list(groups(neighborhood))
        assert [blocks for group in found for blocks in group] == list(neighborhood.by_queries())
        for group in found:
            for blocks, other in itertools.permutations(group, 2):
                if len(blocks) == 1 and blocks[0].is_dense:
                    assert not keys_of(blocks) & keys_of(other)
    assert len(list(groups(Pyramid((1, 2, 3, 9)).neighborhood()))) == 1
    assert len(list(groups(Pyramid((1, 2, 3, 9)).causal_neighborhood()))) == 4
    assert [len(group) for group in groups(Pyramid((1, 2, 9, 12, 15), 3, 0, 1).neighborhood())] == [1, 1, 3]


def keys_of(blocks):
    return {key for block in blocks for key in range(block.key_slice.start, block.key_slice.stop)}


def test_tiles_that_share_a_key_have_different_turns_of_one_lane(seed):
    rng = random.Random(seed)
    for index in range(12):
        sides = sorted(rng.randint(1, 30) for _ in range(rng.randint(2, 4)))
        neighborhood = Pyramid(sides, rng.randint(1, 7), 0, rng.randint(0, len(sides) - 1)).neighborhood()
        query, cut = torch.empty(3, neighborhood.num_queries, 2, 8), Cut(2, rng.choice((1, 3)))
        for group in groups(neighborhood):
            tasks = attention_tasks(group, query, cut, rng.choice((1, 1 << 12, 1 << 16)))
            tiled = [task for task in tasks if isinstance(task, TileTask)]
            written = [written_keys(task) for task in tiled]
            for (task, keys), (later, later_keys) in itertools.combinations(zip(tiled, written), 2):
                if keys & later_keys:
                    assert later.lane == task.lane and later.turn > task.turn, (index, sides)
            for lane in {task.lane for task in tiled}:
                turns = [task.turn for task in tiled if task.lane == lane]
                assert turns == sorted(turns) and set(turns) == set(range(turns[-1] + 1)), (index, sides)


def written_keys(task):
    """Return (batch element, key) of all keys that one of the task's tiles sees."""
    keys = {
        block.key_offset + row * block.key_grid[1] + col
        for block, tiles in zip(task.layout.blocks, task.layout.seen)
        for tile in tiles[task.tiles]
        for row, col in itertools.product(*tile.keys)
    }
    return set(itertools.product(range(task.batch.start, task.batch.stop), keys))


def test_tokens_are_covered_once():
    query, key = torch.empty(2, 700, 9, 50), torch.empty(2, 31, 9, 50)
    found = token_tasks(query, key)
    assert len(found) > 1 and [task.number for task in found] == list(range(len(found)))
    for length, slices in ((700, [t.queries for t in found]), (31, [t.keys for t in found])):
        assert [i for each in slices for i in range(each.start, each.stop)] == list(range(length))


def test_only_long_calls_wake_threads(four_threads):
    grid = Neighborhood.of_grids((64, 64), (64, 64), (7, 7))
    small = Neighborhood.of_grids((16, 16), (16, 16), (7, 7))
    assert cut_for(torch.empty(1, 64 * 64, 8, 64), grid) == Cut(4, workers_and_threads(4)[1])
    assert cut_for(torch.empty(1, 256, 8, 64), small) == Cut(1, 4)
    assert cut_for(torch.empty(64, 256, 8, 64), small).threads == 4
    assert cut_for(torch.empty(1, 64 * 64, 8, 64, device="meta"), grid) == Cut(1, 4)
    torch.set_num_threads(1)
    assert cut_for(torch.empty(1, 64 * 64, 8, 64), grid) == Cut(1, 1)
    assert tasks._LEAST_PRODUCTS > 1 << 26, "auto's overhead on small grids"
