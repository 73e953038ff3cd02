"""Tasks cover a call once, whoever works on it."""

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
    passes,
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
        first, *_ = passes(neighborhood)
        for task in attention_tasks(first, query, cut, rng.choice((1, 1 << 12, 1 << 20))):
            part = count[:, task.block.query_slice]
            if isinstance(task, TileTask):
                real = task.layout.real
                own = torch.ones_like(task.layout.queries, dtype=torch.bool) if real is None else real
                which = task.layout.queries[task.tiles][own[task.tiles]]
                part[task.batch, which] += 1
            else:
                part[task.batch, :, task.heads] += 1
        assert (count == 1).all(), (neighborhood, cut)


def test_blocks_of_a_group_share_no_key(seed):
    rng = random.Random(seed)
    for _ in range(40):
        neighborhood = random_neighborhood(rng)
        found = [group for blocks in passes(neighborhood) for group in groups(blocks)]
        assert sorted(block for group in found for block in group) == sorted(neighborhood.blocks)
        for group in found:
            keys = [key for block in group for key in range(block.key_slice.start, block.key_slice.stop)]
            assert len(keys) == len(set(keys))
    assert len(list(groups(Pyramid((1, 2, 3, 9)).neighborhood().blocks))) == 1
    assert len(list(groups(Pyramid((1, 2, 3, 9)).causal_neighborhood().blocks))) == 4


def test_the_queries_of_a_pass_are_in_one_block(seed):
    rng = random.Random(seed)
    for _ in range(40):
        neighborhood = random_neighborhood(rng)
        for blocks in passes(neighborhood):
            queries = [q for block in blocks for q in range(block.query_slice.start, block.query_slice.stop)]
            assert len(queries) == len(set(queries))
    adjacent = passes(Pyramid((1, 2, 9, 12), 3, 0, 1).neighborhood())
    assert [len(blocks) for blocks in adjacent] == [4, 2], "small scales are whole and merged"


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
