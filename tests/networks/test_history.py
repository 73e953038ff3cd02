"""The history pool is attention with one learned query per head."""

import pytest
import torch
import torch.nn.functional as F

from mvar_models.networks.markov_var import HistoryEntry, HistoryPool


@pytest.fixture
def pool(seed):
    pool = HistoryPool(256)
    with torch.no_grad():
        for parameter in pool.parameters():
            parameter.normal_(std=0.1)
        pool.query.normal_(std=2)
    return pool


@torch.no_grad()
def test_it_is_attention(pool):
    tokens = torch.randn(3, 7, 256)
    key, value = (tokens @ pool.key_value.weight.T).chunk(2, dim=-1)
    heads = [part.unflatten(-1, (2, 128)).transpose(1, 2) for part in (key, value + pool.v_bias)]
    query = pool.query[None, :, None].expand(3, -1, -1, -1)
    pooled = F.scaled_dot_product_attention(query, *heads).transpose(1, 2).flatten(1)
    expected = F.linear(pooled, pool.proj.weight, pool.proj.bias)
    assert torch.allclose(pool(pool.entry(tokens)), expected, atol=1e-5)


@torch.no_grad()
def test_entries_are_joined_and_parted_by_token(pool):
    tokens = torch.randn(2, 9, 256)
    whole = pool.entry(tokens)
    joined = HistoryEntry.join([pool.entry(tokens[:, :4]), pool.entry(tokens[:, 4:])])
    assert torch.allclose(joined.scores, whole.scores, atol=1e-6)
    assert torch.allclose(pool(whole.part(slice(2, 6))), pool(pool.entry(tokens[:, 2:6])), atol=1e-6)


def test_other_widths_are_refused():
    with pytest.raises(ValueError, match=r"width must be a multiple of 128.* got 192"):
        HistoryPool(192)
