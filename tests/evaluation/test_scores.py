"""Inception score and kernel distance against closed forms and loops."""

import numpy as np
import pytest
import torch

from mvar_models.evaluation.scores import InceptionScore, kernel_distance


def inception_score(logits, labels=None, split=5_000):
    score = InceptionScore(len(logits), labels, split)
    score.update(logits, np.arange(len(logits)))
    return score.result()


def test_certain_and_even_classes_give_their_number():
    logits = 100 * torch.eye(10).repeat(5, 1)
    assert inception_score(logits)[0] == pytest.approx(10)


def test_no_knowledge_gives_one():
    assert inception_score(torch.zeros(20, 7)) == pytest.approx((1, 0))


def test_against_the_definition():
    logits = torch.randn(30, 6, dtype=torch.float64)
    expected = []
    for part in logits.split(12):
        shares = part.softmax(1)
        expected.append((shares * (shares / shares.mean(0)).log()).sum(1).mean().exp().item())
    assert inception_score(logits, split=12) == pytest.approx((np.mean(expected), np.std(expected)))


def test_a_sorted_file_is_permuted_and_says_so():
    labels = np.repeat(np.arange(10), 10)
    logits = 100 * torch.eye(10)[labels]
    score = InceptionScore(100, labels, split=20)
    score.update(logits, np.arange(100))
    assert score.order == "permuted"
    assert score.result()[0] > 5, "in file order every split has two classes"
    assert inception_score(logits, split=20)[0] == pytest.approx(2)
    assert InceptionScore(100, labels[::-1].copy(), split=20).order == "file"


def test_processes_merge():
    logits = torch.randn(40, 5)
    first, second = InceptionScore(40, split=15), InceptionScore(40, split=15)
    first.update(logits[::2], np.arange(0, 40, 2))
    second.update(logits[1::2], np.arange(1, 40, 2))
    first.merge(second)
    assert first.result() == pytest.approx(inception_score(logits, split=15), rel=1e-12)


def test_against_a_loop():
    torch.manual_seed(0)
    first, second = torch.randn(6, 3).double(), torch.randn(6, 3).double()

    def kernel(x, y):
        return (x @ y / 3 + 1).item() ** 3

    own = sum(kernel(s[i], s[j]) for s in (first, second) for i in range(6) for j in range(6) if i != j)
    cross = sum(kernel(x, y) for x in first for y in second)
    assert kernel_distance(first, second) == pytest.approx((own / 30 - 2 * cross / 36, 0))


def test_equal_distributions_are_around_zero():
    torch.manual_seed(0)
    mean, deviation = kernel_distance(torch.randn(400, 4), torch.randn(400, 4), subset=100, subsets=50)
    assert abs(mean) < deviation
    assert np.sign(kernel_distance(torch.randn(400, 4) + 1, torch.randn(400, 4), subset=100)[0]) == 1


def test_one_image_is_too_few():
    with pytest.raises(ValueError, match="at least 2 images of each, got 1"):
        kernel_distance(torch.zeros(1, 3), torch.zeros(5, 3))
