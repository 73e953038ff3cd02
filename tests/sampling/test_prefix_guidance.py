"""PrefixGuidance: off at weight 0, its formula, what it corrupts, and its independence of batches."""

import pytest
import torch

from mvar_models.sampling import sampler as module
from mvar_models.sampling.prefix_guidance import CORRUPTIONS, PrefixGuidance

from tiny_models import tiny_markov_var, tiny_mvar, tiny_sample, tiny_var, tiny_vqvae

MODELS = pytest.mark.parametrize("make", [tiny_var, tiny_mvar])
LABELS, SEEDS = [0, 2, 1, 1], [7, 8, 9, 10]


def guided(model, weight=2.0, *, labels=LABELS, seeds=SEEDS, share=0.5, corruption="embedding", **options):
    return tiny_sample(
        model, labels, seeds, processors=[PrefixGuidance(model, weight, share, corruption)], **options
    )


class Recorded(PrefixGuidance):
    """Keeps the logits that go in and come out, and which positions each scale takes."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.seen, self.sources = {}, {}

    def __call__(self, logits, context):
        out = super().__call__(logits, context)
        self.seen[context.scale] = logits, out
        return out

    def _corrupted(self, inputs, context):
        inputs, source = super()._corrupted(inputs, context)
        self.sources[context.scale] = source
        return inputs, source


@MODELS
@pytest.mark.parametrize("guidance_scale", [0.0, 1.5])
def test_weight_zero_and_nothing_corrupted_change_no_bit(make, guidance_scale):
    """The second pass over a clean prefix gives the same logits, so that their difference is 0."""
    model = make()
    plain = tiny_sample(model, LABELS, SEEDS, guidance_scale=guidance_scale)
    for options in (dict(weight=0.0), dict(share=0.0)):
        result = guided(model, guidance_scale=guidance_scale, **options)
        assert torch.equal(result.indices, plain.indices)
        assert torch.equal(result.f_hat, plain.f_hat)


@MODELS
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_it_changes_codes_after_the_coarsest_scale_alone(make, corruption):
    model = make()
    plain, result = tiny_sample(model, LABELS, SEEDS), guided(model, 4.0, corruption=corruption)
    assert torch.equal(result.indices[:, :1], plain.indices[:, :1])
    assert not torch.equal(result.indices, plain.indices)


def test_the_logits_are_those_of_the_formula():
    """By halves: c' = (1 + l) c - l c~ and u' likewise, then guidance, which is how the paper writes it.

    The corrupted halves are computed apart, by a gather of the embeddings that the blocks get.
    """
    model, weight = tiny_mvar(), 1.5
    guide = Recorded(model, 2.0, 0.5)
    f_hats = []
    tiny_sample(model, LABELS, SEEDS, processors=[guide], on_scale=lambda _, f_hat: f_hats.append(f_hat))
    for scale in (1, 2):
        inputs = tiny_vqvae().quantizer.next_input(f_hats[scale - 1], scale)
        halves = []
        for labels in (torch.tensor(LABELS), torch.full((4,), 3)):
            embedding = model.class_embedding(labels)
            hidden = model.embed(embedding, inputs, range(scale, scale + 1))
            logits = []
            for positions in (torch.arange(hidden.shape[1]).expand(4, -1), guide.sources[scale]):
                rows = torch.stack([each[chosen] for each, chosen in zip(hidden, positions)])
                out = model.run_blocks(rows, embedding, model.step_neighborhood(scale))
                logits.append(model.logits(out, embedding))
            halves.append(3 * logits[0] - 2 * logits[1])
        t = weight * scale / 2
        expected = (1 + t) * halves[0] - t * halves[1]
        assert torch.allclose(guide.seen[scale][1], expected, atol=1e-4)


def test_a_var_remembers_the_corrupted_scales():
    """With only the middle scale corrupted, the last one's logits differ through the keys alone."""
    model = tiny_var()

    class Middle(Recorded):
        def _corrupted(self, inputs, context):
            corrupted, source = super()._corrupted(inputs, context)
            own = torch.arange(source.shape[1]).expand_as(source)
            return (corrupted, source) if context.scale == 1 else (inputs, own)

    guide = Middle(model, 2.0, 1.0)
    tiny_sample(model, LABELS, SEEDS, processors=[guide])
    before, after = guide.seen[2]
    assert not torch.allclose(before, after, atol=1e-3)


def test_positions_move_inside_their_scale_and_never_to_themselves():
    guide = Recorded(tiny_mvar(), 1.0, 1.0)
    tiny_sample(guide.model, LABELS, SEEDS, processors=[guide])
    for scale, tokens in ((1, 4), (2, 16)):
        source = guide.sources[scale]
        assert source.shape == (4, tokens) and 0 <= source.min() <= source.max() < tokens
        assert (source != torch.arange(tokens)).all()
    few = Recorded(tiny_mvar(), 1.0, 0.1)
    tiny_sample(few.model, [0] * 200, range(200), processors=[few])
    share = (few.sources[2] != torch.arange(16)).float().mean().item()
    assert abs(share - 0.1) < 0.03


@MODELS
def test_neither_batches_nor_earlier_calls_matter(make, monkeypatch):
    model = make()
    guide = PrefixGuidance(model, 2.0, 0.5)
    together = tiny_sample(model, LABELS, SEEDS, processors=[guide]).indices
    tiny_sample(model, LABELS, SEEDS, processors=[guide], scales=range(2))
    alone = [
        tiny_sample(model, [label], [seed], processors=[guide]).indices for label, seed in zip(LABELS, SEEDS)
    ]
    assert torch.equal(torch.cat(alone), together)
    monkeypatch.setattr(module, "_LOGITS_AT_A_TIME", 3 * 16 * 24)
    assert torch.equal(tiny_sample(model, LABELS, SEEDS, processors=[guide]).indices, together)


def test_scales_alone_are_those_of_the_whole():
    model = tiny_mvar()
    whole = guided(model)
    part = guided(model, scales=range(2, 3), f_hat=whole.f_hats[1])
    assert torch.equal(part.indices, whole.indices[:, 5:])


def test_a_markov_var_has_no_positions_to_move():
    model = tiny_markov_var()
    with pytest.raises(ValueError, match=r"corruption 'embedding'.*MarkovVAR.*'input'"):
        PrefixGuidance(model, 1.0)
    assert guided(model, corruption="input").indices.shape == (4, 21)


@pytest.mark.parametrize(
    "options, match",
    [
        (dict(share=1.5), "share.*between 0 and 1.*1.5"),
        (dict(corruption="noise"), "corruption.*embedding.*'noise'"),
        (dict(weight="much"), "weight.*number.*much"),
    ],
)
def test_wrong_arguments_are_one_line(options, match):
    with pytest.raises((ValueError, TypeError), match=match):
        guided(tiny_mvar(), **options)
