"""NATTEN, as installed from PyPI: the same output on every shape that it accepts."""

import random
import warnings

import pytest
import torch

from mvar_kernels import spatial_markov_attn

from kernel_cases import CPU_BACKENDS, assert_close

pytest.importorskip(
    "natten",
    reason="NATTEN is not installed: `make test` tries `pip install natten`, which builds against torch",
)
pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7),
    reason=f"NATTEN has no backend on a CPU with torch {torch.__version__}, it needs 2.7",
)


def na2d(query, key, value, kernel_size):
    from natten.functional import na2d as theirs

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of FlexAttention, which it runs uncompiled on a CPU
        return theirs(query, key, value, kernel_size=kernel_size, backend="flex-fna")


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_same_output_as_natten(backend, seed):
    rng = random.Random(seed)
    for index in range(12):
        grid = rng.randint(2, 20), rng.randint(2, 20)
        window = tuple(rng.randint(2, side) for side in grid)
        query, key, value = (torch.randn(2, *grid, 3, 16) for _ in range(3))
        ours = spatial_markov_attn(query, key, value, window, backend=backend)
        assert_close(ours, na2d(query, key, value, window), 2e-6, f"{index}: grid {grid}, window {window}")


def test_where_natten_refuses_the_window_is_the_grid():
    query, key, value = (torch.randn(1, 4, 4, 2, 16) for _ in range(3))
    with pytest.raises(Exception, match=r"(?i)kernel|window"):
        na2d(query, key, value, 7)
    assert_close(
        spatial_markov_attn(query, key, value, 7),
        na2d(query, key, value, 4),
        2e-6,
        "window larger than the grid",
    )
    with pytest.raises(Exception, match=r"(?i)kernel|window|greater"):
        na2d(query, key, value, 1)
    assert torch.equal(spatial_markov_attn(query, key, value, 1), value)


def test_parameters_move_over_from_its_module():
    """README's table: qkv and proj have the same names and meaning."""
    from natten import NeighborhoodAttention2D

    from mvar_kernels import SpatialMarkovAttention

    theirs = NeighborhoodAttention2D(embed_dim=32, num_heads=2, kernel_size=5)
    ours = SpatialMarkovAttention(32, 2, 5)
    ours.load_state_dict(theirs.state_dict())
    features = torch.randn(1, 9, 8, 32)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_close(ours(features), theirs(features), 2e-5, "module")
