"""Code usage and perplexity, against counts and distributions whose values are known."""

import torch

from mvar_models.evaluation.codebook import code_counts, codes_used, perplexity


def test_counts_are_kept_by_scale():
    """Scales of 1 and 4 tokens, two images."""
    indices = torch.tensor([[2, 0, 0, 1, 2], [2, 0, 1, 1, 1]])
    assert code_counts(indices, (1, 2), 4).tolist() == [[0, 0, 2, 0], [3, 4, 1, 0]]


def test_used_is_the_share_of_codes_that_occur():
    assert codes_used(torch.tensor([[0.0, 0, 2, 0], [3, 4, 1, 0]])).tolist() == [0.25, 0.75]


def test_counts_may_have_any_number_of_leading_axes():
    counts = torch.tensor([[0.0, 0, 2, 0], [3, 4, 1, 0]])
    assert codes_used(counts[0]).item() == 0.25
    assert codes_used(counts[:, None]).tolist() == [[0.25], [0.75]]
    assert perplexity(counts[:, None]).shape == (2, 1)


def test_perplexity_is_the_number_of_equally_frequent_codes():
    counts = torch.tensor([[5.0, 5, 5, 5], [7, 0, 0, 0], [3, 3, 0, 0]])
    assert torch.allclose(perplexity(counts), torch.tensor([4.0, 1.0, 2.0]))


def test_perplexity_of_uneven_counts():
    """exp of the entropy of (1/2, 1/4, 1/4), which is 1.5 ln 2."""
    assert torch.allclose(perplexity(torch.tensor([2.0, 1, 1])), torch.tensor(2**1.5))
