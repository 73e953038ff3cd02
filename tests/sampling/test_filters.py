"""Filters keep what a plain loop over their definition keeps; draws follow the distribution exactly."""

import pytest
import torch

from mvar_models.sampling.filters import draw, filter_logits

from code_cases import NEARLY_OFF


def plain_filter(row, top_k, top_p):
    """One row of logits by the definition, in a loop."""
    row = row.double()
    allowed = torch.ones(len(row), dtype=torch.bool)
    if 0 < top_k < len(row):
        allowed &= row >= sorted(row.tolist(), reverse=True)[top_k - 1]
    if 0 < top_p < 1:
        probability = torch.where(allowed, row, -torch.inf).softmax(0)
        kept, total = set(), 0.0
        for index in probability.argsort(descending=True).tolist():
            if total >= top_p:
                break
            kept.add(index)
            total += probability[index].item()
        allowed &= torch.tensor([index in kept for index in range(len(row))])
    return allowed


@pytest.mark.parametrize(
    "top_k, top_p",
    [
        (0, 0.0),
        (5, 0.0),
        (12, 0.0),
        (0, 0.7),
        (9, 0.5),
        (1, 0.9),
        (100, 1.0),
        (3, 1e-6),
        (19, 0.0),
        (0, 0.999),
    ],
)
def test_filters_keep_what_their_definition_keeps(seed, top_k, top_p):
    logits = torch.randn(2, 7, 20) * 3
    kept = filter_logits(logits, top_k, top_p).isfinite()
    for batch in range(2):
        for token in range(7):
            expected = plain_filter(logits[batch, token], top_k, top_p)
            assert torch.equal(kept[batch, token], expected), (batch, token)


@pytest.mark.parametrize("logits, uniform, settings, code", NEARLY_OFF)
def test_filters_that_are_nearly_off(logits, uniform, settings, code):
    assert draw(filter_logits(torch.tensor(logits), **settings), torch.tensor(uniform)).item() == code


def test_without_settings_nothing_is_filtered():
    assert filter_logits(torch.tensor([[3.0, -50.0]])).isfinite().all()


def test_codes_stop_where_top_p_is_reached_exactly():
    assert filter_logits(torch.zeros(1, 2), top_p=0.5).isfinite().sum() == 1


def test_ties_at_the_kth_are_kept():
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0, 0.0]])
    assert filter_logits(logits, top_k=2).isfinite().tolist() == [[True, False, True, True, False]]


@pytest.mark.parametrize(
    "top_k, top_p, match", [(-1, 0, "top_k.*-1"), (0, -0.1, r"top_p.*-0\.1"), (0, 1.5, r"top_p.*1\.5")]
)
def test_values_out_of_range_are_refused(top_k, top_p, match):
    with pytest.raises(ValueError, match=match):
        filter_logits(torch.zeros(1, 4), top_k, top_p)


def test_draw_inverts_the_distribution():
    """A uniform number picks the code whose interval of the cumulative distribution holds it."""
    logits = torch.tensor([0.1, 0.0, 0.4, 0.5]).log().expand(1, 1001, 4)
    uniform = torch.linspace(0, 1 - 2**-24, 1001)[None]
    counts = torch.bincount(draw(logits, uniform).flatten(), minlength=4)
    assert counts[1] == 0
    assert torch.allclose(counts / 1001, torch.tensor([0.1, 0.0, 0.4, 0.5]), atol=2e-3)
    last_impossible = torch.tensor([[[0.0, -torch.inf]]])
    assert draw(last_impossible, torch.tensor([[1 - 2**-24]])).item() == 0
    first_impossible = torch.tensor([[[-torch.inf, 0.0]]])
    assert draw(first_impossible, torch.zeros(1, 1)).item() == 1


def test_a_threshold_at_the_very_end_draws_the_last_possible_code():
    """Rounding can put the threshold where the sum ends; codes after the last possible one stay out."""
    logits = torch.tensor([[[0.0, 1.0, -torch.inf, -torch.inf], [0.0, 1.0, -torch.inf, 2.0]]])
    assert draw(logits, torch.ones(1, 2)).tolist() == [[1, 3]]
