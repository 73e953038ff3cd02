"""The Inception score against closed forms, and its splits."""

import numpy as np
import pytest
import torch

from mvar_models.evaluation.inception_score import InceptionScore, inception_score


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
