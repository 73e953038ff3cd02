"""The numbers of a token: the same whenever they are read, and whichever scales are drawn."""

import pytest
import torch

from mvar_kernels import Pyramid
from mvar_models.randomness import UniformNumbers, uniform_numbers
from mvar_models.sampling.sampler import Sampler
from mvar_models.sampling.samplers import SmoothSampler

PYRAMID = Pyramid((1, 2, 4))
CPU = torch.device("cpu")


def generators():
    return [torch.Generator().manual_seed(seed) for seed in (3, 4)]


@pytest.mark.parametrize("scales", [range(3), range(1, 3), range(2, 3), range(0, 1)])
def test_read_at_once_or_by_scale_they_are_the_same(scales):
    both = [UniformNumbers(generators(), PYRAMID, scales, by_scale, CPU) for by_scale in (False, True)]
    whole = uniform_numbers(generators(), 21)
    for scale in scales:
        expected = whole[:, PYRAMID.scale_slice(scale)]
        assert all(torch.equal(numbers.of_scale(scale), expected) for numbers in both)


def test_numbers_of_an_image_come_from_its_generator():
    found = uniform_numbers(generators(), 5)
    assert found.dtype == torch.float32 and found.shape == (2, 5)
    expected = torch.rand(5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert torch.equal(found[1], expected.float())


def test_a_number_that_rounds_to_one_is_below_one(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda n, **options: torch.full((n,), 1 - 2**-40, dtype=torch.float64))
    assert uniform_numbers(generators(), 2).max() == 1 - 2**-24


def test_a_sampler_with_its_own_choice_is_taken_to_read_generators():
    class Own(Sampler):
        def choose(self, logits, context):
            return super().choose(logits, context)

    class Honest(Own):
        reads_generators = False

        def choose(self, logits, context):
            return super().choose(logits, context)

    class Child(Own):
        pass

    kinds = (Sampler, Own, Child, Honest, SmoothSampler)
    assert [kind.reads_generators for kind in kinds] == [False, True, True, False, True]
