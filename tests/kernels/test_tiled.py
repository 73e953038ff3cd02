"""The tiled backend: its layout and the scratch memory that it keeps between calls."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mvar_kernels import Neighborhood, spatial_markov_attn
from mvar_kernels.backends import tiled
from mvar_kernels.backends.tiled import workspace
from mvar_kernels.backends.tiled.layout import computed_scores, layout_of


@pytest.mark.parametrize("grid, window", [((8, 8), (3, 3)), ((13, 21), (5, 2)), ((3, 30), (7, 7))])
def test_every_query_lies_in_one_tile_and_sees_its_window(grid, window):
    """Slots that repeat a query are marked, and masks of strips show exactly the keys of the windows."""
    block = Neighborhood.of_grids(grid, grid, window).blocks[0]
    layout, expected = layout_of(block, torch.float32, torch.device("cpu")), block.mask()
    real = torch.ones_like(layout.queries, dtype=torch.bool) if layout.real is None else layout.real
    assert layout.queries[real].sort().values.tolist() == list(range(block.num_queries))
    for run in layout.runs:
        for strip, first_key_row in zip(layout.strips, run.first_key_rows):
            keys = layout.keys[run.tiles, layout.key_slots(strip, first_key_row)]
            queries = layout.queries[run.tiles, strip.slots]
            actual = torch.zeros(*queries.shape, block.num_keys, dtype=torch.bool)
            seen = strip.bias[run.tiles].squeeze(1) == 0
            actual.scatter_(2, keys[:, None].expand(seen.shape), seen)
            assert torch.equal(actual, expected[queries])


def test_computed_scores_count_whole_tiles():
    """9 tiles of 8 x 8 queries; windows of 7 reach 14 x 14 keys."""
    assert computed_scores(Neighborhood.of_grids((24, 24), (24, 24), (7, 7)).blocks[0]) == 9 * 64 * 14 * 14


def test_memory_kept_between_calls_does_no_harm(monkeypatch):
    """Inference mode first, then gradients, other types and sizes, two threads at once."""

    def error(side, dtype):
        query, key, value = (
            torch.randn(2, side, side, 2, 8, dtype=dtype, requires_grad=True) for _ in range(3)
        )
        grad = torch.randn(2, side, side, 2, 8, dtype=dtype)
        actual, expected = (
            [out, *torch.autograd.grad(out, (query, key, value), grad)]
            for out in (
                spatial_markov_attn(query, key, value, 5, backend=backend)
                for backend in ("tiled", "reference")
            )
        )
        return max((a - b).abs().max().item() for a, b in zip(actual, expected))

    with torch.inference_mode():
        spatial_markov_attn(*(torch.randn(2, 12, 12, 2, 8) for _ in range(3)), 5, backend="tiled")
    with ThreadPoolExecutor(2) as pool:
        asked = [(side, dtype) for side in (9, 20, 13) for dtype in (torch.float32, torch.float64)] * 4
        assert all(actual < 1e-5 for actual in pool.map(lambda each: error(*each), asked))
    assert error(17, torch.float32) < 1e-5 and tiled._workspace.buffers
    monkeypatch.setattr(workspace, "KEPT_BYTES", 0)
    assert error(17, torch.float32) < 1e-5 and not tiled._workspace.buffers
