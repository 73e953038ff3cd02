"""CONTRIBUTING's recipe: a sampler is one file and one row of SAMPLERS."""

import importlib

import numpy as np
import pytest
import torch

from mvar_models import MVARPipeline, VARPipeline
from mvar_models.sampling.settings import SAMPLERS

from tiny_models import tiny_mvar, tiny_sample, tiny_var, tiny_vqvae

TOY = '''
"""The most likely code of every token, and a count of the scales."""

from mvar_models.sampling.sampler import Sampler


class Greedy(Sampler):
    scales = 0

    def choose(self, logits, context):
        codes = logits.argmax(-1)
        return codes, context.quantizer.codebook(codes)

    def after_scale(self, scale, f_hat):
        Greedy.scales += 1
        return f_hat
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The one file and the one row."""
    (tmp_path / "toy_sampler.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    monkeypatch.setitem(SAMPLERS, "greedy", "toy_sampler:Greedy")


@pytest.mark.parametrize("make", [tiny_var, tiny_mvar])
def test_it_draws_by_its_name(toy, make):
    """The most likely code is what top_k=1 leaves to draw."""
    model = make()
    found = tiny_sample(model, [0, 1, 2], [0, 1, 2], sampler="greedy").indices
    assert torch.equal(found, tiny_sample(model, [0, 1, 2], [0, 1, 2], top_k=1).indices)


@pytest.mark.parametrize("kind, make", [(VARPipeline, tiny_var), (MVARPipeline, tiny_mvar)])
def test_pipelines_take_it(toy, kind, make):
    pipeline = kind(make(), tiny_vqvae())
    found = pipeline([0, 1], seed=0, sampler="greedy", output_type="np").images
    assert np.array_equal(found, pipeline([0, 1], seed=0, top_k=1, output_type="np").images)


def test_its_hooks_are_called_once_per_scale(toy):
    module = importlib.import_module("toy_sampler")
    module.Greedy.scales = 0
    tiny_sample(tiny_mvar(), [0, 1], [0, 1], sampler="greedy")
    assert module.Greedy.scales == 3


def test_it_is_listed_among_the_names(toy):
    with pytest.raises(ValueError, match="greedy"):
        MVARPipeline(tiny_mvar(), tiny_vqvae())([0], sampler="greedier")
