"""Precision, recall, density and coverage against loops in float64, and where theory says what they are."""

import pytest
import torch

from mvar_models.evaluation import distances
from mvar_models.evaluation.neighbours import neighbourhoods


def squared(first, second):
    return (first.double()[:, None] - second.double()).square().sum(-1)


def brute(drawn, reference):
    """The four figures by their definitions, image by image; exact where the vectors are whole numbers."""

    def radius(vectors, k):
        return squared(vectors, vectors).sort().values[:, k].tolist()

    near, wide, own = radius(reference, 3), radius(reference, 5), radius(drawn, 3)
    apart = squared(drawn, reference)
    n, m = apart.shape
    precision = sum(any(apart[i, j] <= near[j] for j in range(m)) for i in range(n)) / n
    recall = sum(any(apart[i, j] <= own[i] for i in range(n)) for j in range(m)) / m
    density = sum(sum(apart[i, j].item() <= wide[j] for j in range(m)) for i in range(n)) / (5 * n)
    coverage = sum(apart[:, j].min() <= wide[j] for j in range(m)).item() / m
    return precision, recall, density, coverage


def figures(found):
    return found.precision, found.recall, found.density, found.coverage


@pytest.mark.parametrize("shift", [0, 0.7, 2])
def test_against_brute_force(shift):
    torch.manual_seed(1)
    drawn, reference = torch.randn(40, 4) + shift, torch.randn(30, 4)
    assert figures(neighbourhoods(drawn, reference)) == pytest.approx(brute(drawn, reference))


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize("offset", [0, 1000])
def test_ties_on_whole_numbers_against_brute_force(monkeypatch, block, offset):
    """Of points on a small grid most are equally far from several others."""
    monkeypatch.setattr(distances, "_NUMBERS", block)
    for seed in range(30):
        torch.manual_seed(seed)
        size, dimension = 3 + seed % 4, 2 + seed % 3
        drawn, reference = (
            torch.randint(size, (count, dimension)).float() + offset for count in (25 + seed, 30)
        )
        found = figures(neighbourhoods(drawn, reference))
        assert found == pytest.approx(brute(drawn, reference), abs=1e-12), seed


@pytest.mark.parametrize("block", [1, 50, 1 << 20])
def test_ties_of_copies_against_brute_force(monkeypatch, block):
    """A copy of the k-th neighbour lies at just the radius, however the sum of its distance was rounded."""
    monkeypatch.setattr(distances, "_NUMBERS", block)
    torch.manual_seed(3)
    reference = torch.randn(60, 33) / 7 + 5
    order = torch.randperm(60)
    apart = squared(reference, reference)
    expected = (apart <= apart.sort(1).values[:, 5:6]).sum().item() / (5 * 60)
    assert neighbourhoods(reference[order], reference).density == pytest.approx(expected, abs=1e-12)


def test_identical_sets():
    vectors = torch.randn(50, 6)
    found = neighbourhoods(vectors, vectors.clone())
    assert figures(found)[:2] == (1, 1)
    assert found.coverage == 1


@pytest.mark.parametrize("half", [False, True])
def test_far_copies_share_nothing(half):
    vectors = torch.randn(50, 6)
    assert figures(neighbourhoods(vectors + 50, vectors, half=half)) == (0, 0, 0, 0)


def test_a_dropped_mode_costs_recall_alone():
    torch.manual_seed(2)
    modes = torch.tensor([[0.0, 0], [100, 0]])
    reference = torch.cat([torch.randn(60, 2) + mode for mode in modes])
    found = neighbourhoods(reference[:60] + 0.01 * torch.randn(60, 2), reference)
    assert found.precision > 0.95
    assert found.recall == pytest.approx(0.5, abs=0.05)
    assert found.coverage == pytest.approx(0.5, abs=0.05)
