"""The best of m candidates: the same codes for m = 1, the scorer's choice for more."""

import pytest
import torch

from mvar_models import MVARPipeline
from mvar_models.networks.scorer import Scorer, ScorerConfig
from mvar_models.pipeline.auto import pipeline_of
from mvar_models.sampling.lsrs import ScoredSampler

from tiny_models import tiny_markov_var, tiny_mvar, tiny_var, tiny_vqvae


class Brightest(torch.nn.Module):
    """Scores a map by its sum, so that the best candidate is known."""

    config = ScorerConfig(num_classes=3, z_channels=4, sides=(1, 2, 8), width=8)

    def forward(self, maps, labels, scale):
        self.seen = (maps, labels, scale)
        return maps.sum((1, 2, 3))


def pipeline(make):
    return pipeline_of(make(), tiny_vqvae())


@pytest.mark.parametrize("make", [tiny_var, tiny_mvar, tiny_markov_var])
def test_one_candidate_is_ancestral_sampling(make):
    pipe, options = pipeline(make), dict(seed=0, output_type="latent", guidance_scale=1.5)
    plain = pipe([0, 1, 2], **options)
    one = pipe([0, 1, 2], **options, sampler=ScoredSampler(Brightest(), 1))
    none = pipe([0, 1, 2], **options, sampler=ScoredSampler(Brightest(), 4, range(0)))
    assert torch.equal(plain.indices, one.indices) and torch.equal(plain.indices, none.indices)


@pytest.mark.parametrize("make", [tiny_var, tiny_mvar])
def test_the_best_candidate_is_kept_and_images_do_not_depend_on_their_batch(make):
    pipe, options = pipeline(make), dict(output_type="latent", guidance_scale=0.0, top_k=0, top_p=0.0)
    sums = {}
    for count in (1, 4, 32):
        sampler = ScoredSampler(Brightest(), count, range(3))
        output = pipe([0, 1, 2], seed=3, **options, sampler=sampler)
        sums[count] = output.images.sum((1, 2, 3))
        alone = pipe([2], seed=5, **options, sampler=sampler)
        assert torch.equal(alone.indices[0], output.indices[2])
    # Of more candidates the best is brighter, on every image here: the first is always among them.
    assert (sums[32] > sums[1]).all() and sums[32].mean() > sums[4].mean() > sums[1].mean()


def test_the_scorer_sees_the_map_with_the_candidate_the_class_and_the_scale():
    scorer = Brightest()
    output = pipeline(tiny_mvar)(
        [2], seed=0, output_type="latent", sampler=ScoredSampler(scorer, 3, range(2, 3))
    )
    maps, labels, scale = scorer.seen
    assert maps.shape == (3, 4, 4, 4) and labels.tolist() == [2, 2, 2] and scale == 2
    best = maps[maps.sum((1, 2, 3)).argmax()]
    torch.testing.assert_close(best, output.images[0])


def test_a_real_scorer_runs_in_the_loop():
    pipe = MVARPipeline.from_pretrained("mvar-digits")
    config = pipe.model.config
    torch.manual_seed(0)
    scorer = Scorer(ScorerConfig(config.num_classes, config.z_channels, config.sides, width=16))
    first = pipe([3, 7], seed=0, sampler=ScoredSampler(scorer, 4))
    again = pipe([3, 7], seed=0, sampler=ScoredSampler(scorer, 4))
    assert torch.equal(first.indices, again.indices)
    assert not torch.equal(first.indices, pipe([3, 7], seed=0).indices)
    with pytest.raises(ValueError, match="candidates must be at least 1, got 0"):
        ScoredSampler(scorer, 0)
