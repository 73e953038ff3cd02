"""Markov-VAR's position code: shared coordinates, and two angles per pair of features."""

import math

import pytest
import torch

from mvar_models.networks.markov_block import rotary_angles, rotate


def test_scales_share_the_finest_one_s_coordinates():
    row, column = rotary_angles((1, 2, 4), 8)
    assert row.shape == column.shape == (21, 4)
    # Two frequencies, 1 and 10000^(-1/2), each for two pairs.
    for token, (y, x) in {0: (0, 0), 4: (2, 2), 2: (0, 2), 5 + 7: (1, 3)}.items():
        assert torch.allclose(row[token], torch.tensor([y, y * 0.01, y, y * 0.01]))
        assert torch.allclose(column[token], torch.tensor([x, x * 0.01, x, x * 0.01]))


def test_a_pair_turns_by_two_angles():
    turned = rotate(
        torch.tensor([3.0, 5.0]).view(1, 1, 1, 2), torch.tensor([[0.3]]), torch.tensor([[1.1]])
    ).flatten()
    first = 3 * math.cos(0.3) - 5 * math.sin(0.3)
    second = 5 * math.cos(1.1) + 3 * math.sin(1.1)
    assert torch.allclose(turned, torch.tensor([first, second]))


def test_the_type_is_kept_and_angles_are_not_rounded_to_it():
    vectors = torch.randn(1, 16, 2, 8, generator=torch.Generator().manual_seed(0))
    angles = rotary_angles((4,), 8)
    half = rotate(vectors.bfloat16(), *angles)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, rotate(vectors.bfloat16().float(), *angles).bfloat16())


def test_other_head_dims_are_refused():
    with pytest.raises(ValueError, match=r"head_dim must be a multiple of 4.* got 6"):
        rotary_angles((2,), 6)
