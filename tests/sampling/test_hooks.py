"""Hooks of the scale loop: given codes, callbacks that replace or stop, scales drawn alone, processors."""

import pytest
import torch
import torch.nn.functional as F

from mvar_models.sampling import sampler as module
from mvar_models.sampling.hooks import SpatialGuidance, StopSampling
from mvar_models.sampling.sampler import Sampler

from tiny_models import tiny_mvar, tiny_sample, tiny_var, tiny_vqvae

MODELS = pytest.mark.parametrize("make", [tiny_var, tiny_mvar])
LABELS, SEEDS = [0, 2, 1], [7, 8, 9]
OFFSETS = (0, 1, 5, 21)


def f_hats(model, **options):
    seen = []
    tiny_sample(model, LABELS, SEEDS, on_scale=lambda scale, f_hat: seen.append(f_hat.clone()), **options)
    return seen


@pytest.mark.parametrize("sampler", ["ancestral", "smooth"])
@pytest.mark.parametrize("first", [1, 2])
def test_scales_drawn_alone_from_f_hat_are_those_of_the_whole(first, sampler):
    """Random numbers too: those of a token do not depend on which scales are drawn.

    The smooth sampler reads further numbers at every scale, so it repeats the codes of the last one only if
    it reads none before: then only shapes and ranges can be checked.
    """
    model = tiny_mvar()
    whole = tiny_sample(model, LABELS, SEEDS, sampler=sampler)
    before = f_hats(model, sampler=sampler)[first - 1]
    part = tiny_sample(model, LABELS, SEEDS, scales=range(first, 3), f_hat=before, sampler=sampler)
    assert part.indices.shape == (3, 21 - OFFSETS[first])
    if sampler == "ancestral":
        assert torch.equal(part.indices, whole.indices[:, OFFSETS[first] :])
        assert torch.equal(part.f_hat, whole.f_hat)
        assert torch.equal(part.final_logits, whole.final_logits)


@MODELS
def test_the_first_scales_alone(make):
    model = make()
    whole, before = tiny_sample(model, LABELS, SEEDS), f_hats(model)[1]
    part = tiny_sample(model, LABELS, SEEDS, scales=range(0, 2))
    assert torch.equal(part.indices, whole.indices[:, :5])
    assert torch.equal(part.f_hat, before)
    assert part.final_logits.shape == (3, 4, 24)


def test_var_says_why_it_draws_no_fine_scales_alone():
    with pytest.raises(ValueError, match=r"VAR.*scales must start at 0.*range\(1, 3\)"):
        tiny_sample(tiny_var(), LABELS, SEEDS, scales=range(1, 3), f_hat=torch.zeros(3, 4, 4, 4))


@pytest.mark.parametrize(
    "options, match",
    [
        (dict(scales=range(1, 3)), r"f_hat.*\(3, 4, 4, 4\).*none"),
        (dict(scales=range(1, 3), f_hat=torch.zeros(1, 4, 4, 4)), r"f_hat.*\(3, 4, 4, 4\).*\(1, 4, 4, 4\)"),
        (dict(f_hat=torch.zeros(3, 4, 4, 4)), "f_hat"),
        (dict(scales=range(2, 5), f_hat=torch.zeros(3, 4, 4, 4)), r"scales.*range\(2, 5\)"),
    ],
)
def test_scales_and_f_hat_must_fit(options, match):
    with pytest.raises(ValueError, match=match):
        tiny_sample(tiny_mvar(), LABELS, SEEDS, **options)


class Kept:
    """Gives the codes of another image at some scales, and notes what it was called with."""

    def __init__(self, indices, scales):
        self.indices, self.scales, self.seen = indices, scales, []
        self.codebook = tiny_vqvae().quantizer.codebook

    def replace(self, scale, f_hat, codes, vectors):
        self.seen.append((scale, f_hat.clone(), tuple(codes.shape), tuple(vectors.shape)))
        if scale not in self.scales:
            return codes, vectors
        codes = self.indices[:, OFFSETS[scale] : OFFSETS[scale + 1]]
        return codes, self.codebook(codes)


@MODELS
def test_given_codes_take_the_place_of_those_drawn(make):
    """All scales given: exactly that image. The coarsest alone: the others are drawn to fit it."""
    model, quantizer = make(), tiny_vqvae().quantizer
    indices = torch.randint(24, (3, 21), generator=torch.Generator().manual_seed(0))
    given = Kept(indices, {0, 1, 2})
    found = tiny_sample(model, LABELS, SEEDS, given=given)
    with torch.no_grad():
        sums = list(quantizer.accumulate(indices))
    assert torch.equal(found.indices, indices)
    assert torch.allclose(found.f_hat, sums[-1], atol=1e-6)
    assert [(scale, *shapes) for scale, _, *shapes in given.seen] == [
        (scale, (3, n), (3, n, 4)) for scale, n in enumerate((1, 4, 16))
    ]
    assert not given.seen[0][1].any()
    assert torch.allclose(given.seen[2][1], sums[1], atol=1e-6)
    first = tiny_sample(model, LABELS, SEEDS, given=Kept(indices, {0})).indices
    assert torch.equal(first[:, :1], indices[:, :1])
    assert not torch.equal(first[:, 1:], indices[:, 1:])


@MODELS
def test_a_tensor_that_the_callback_returns_replaces_f_hat(make):
    """As a sampler's own hook `after_scale` does."""
    model = make()

    class Halving(Sampler):
        def after_scale(self, scale, f_hat):
            return f_hat / 2

    expected = tiny_sample(model, LABELS, SEEDS, sampler=Halving())
    found = tiny_sample(model, LABELS, SEEDS, on_scale=lambda scale, f_hat: f_hat / 2)
    assert torch.equal(found.f_hat, expected.f_hat)
    assert torch.equal(found.indices, expected.indices)
    assert not torch.equal(found.indices, tiny_sample(model, LABELS, SEEDS).indices)


def test_other_answers_of_the_callback_change_nothing():
    """A progress bar's `update` answers with a bool."""
    found = tiny_sample(tiny_mvar(), LABELS, SEEDS, on_scale=lambda scale, f_hat: True)
    assert torch.equal(found.indices, tiny_sample(tiny_mvar(), LABELS, SEEDS).indices)


def test_an_f_hat_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"on_scale.*\(3, 4, 4, 4\).*\(3, 4, 2, 2\)"):
        tiny_sample(tiny_mvar(), LABELS, SEEDS, on_scale=lambda scale, f_hat: f_hat[..., :2, :2])


@MODELS
def test_a_callback_stops_the_loop(make):
    """What was drawn is the result: the codes and f_hat up to that scale, and no logits of the last one."""
    seen = []

    def stop(scale, f_hat):
        seen.append(scale)
        if scale == 1:
            raise StopSampling

    model = make()
    found = tiny_sample(model, LABELS, SEEDS, on_scale=stop)
    assert seen == [0, 1]
    assert torch.equal(found.indices, tiny_sample(model, LABELS, SEEDS).indices[:, :5])
    assert torch.equal(found.f_hat, f_hats(model)[1])
    assert found.final_logits is None


def test_choices_know_labels_and_f_hat():
    seen = []

    class Watching(Sampler):
        def choose(self, logits, context):
            seen.append((context.labels.tolist(), context.f_hat.clone(), context.scales))
            return super().choose(logits, context)

    tiny_sample(tiny_mvar(), LABELS, SEEDS, sampler=Watching())
    expected = [torch.zeros(3, 4, 4, 4), *f_hats(tiny_mvar())[:2]]
    for (labels, f_hat, scales), before in zip(seen, expected, strict=True):
        assert labels == LABELS and scales == range(3)
        assert torch.equal(f_hat, before)


def test_processors_apply_in_turn_before_the_filters():
    """top_k=1 draws the largest of what the processors leave: (-1 x logits) + 1e4 at code 5."""

    def negate(logits, context):
        return -logits

    def prefer(logits, context):
        assert (logits.amax(-1) < 1e3).all()
        return logits + 1e4 * torch.nn.functional.one_hot(torch.tensor(5), 24)

    model = tiny_mvar()
    found = tiny_sample(model, LABELS, SEEDS, top_k=1, processors=[negate, prefer]).indices
    assert (found == 5).all()
    last = tiny_sample(model, LABELS, SEEDS, top_k=1, processors=[negate])
    assert torch.equal(last.indices[:, 5:], last.final_logits.argmin(-1))


FOUR_LABELS, FOUR_SEEDS = [0, 2, 1, 1], [7, 8, 9, 10]


class Recorded(SpatialGuidance):
    """Keeps what went in and what came out at each scale."""

    def __init__(self, beta):
        super().__init__(beta)
        self.seen = {}

    def __call__(self, logits, context):
        out = super().__call__(logits, context)
        self.seen.setdefault(context.scale, []).append((logits, out))
        return out


@pytest.mark.parametrize("make", [tiny_var, tiny_mvar])
def test_it_adds_what_the_scale_before_did_not_say(make):
    guide = Recorded(0.5)
    tiny_sample(make(), FOUR_LABELS, FOUR_SEEDS, processors=[guide])
    logits, outs = ([torch.cat([pair[i] for pair in guide.seen[s]]) for s in range(3)] for i in (0, 1))
    assert torch.equal(outs[0], logits[0])
    for scale, side in ((1, 2), (2, 4)):
        before = logits[scale - 1].transpose(1, 2).unflatten(2, (side // 2, side // 2))
        low = F.interpolate(before, size=(side, side), mode="bilinear").flatten(2).transpose(1, 2)
        assert torch.allclose(outs[scale], 1.5 * logits[scale] - 0.5 * low, atol=1e-5)


def test_beta_zero_changes_nothing():
    expected = tiny_sample(tiny_mvar(), FOUR_LABELS, FOUR_SEEDS).indices
    assert torch.equal(
        tiny_sample(tiny_mvar(), FOUR_LABELS, FOUR_SEEDS, processors=[SpatialGuidance(0.0)]).indices, expected
    )
    guided = tiny_sample(tiny_mvar(), FOUR_LABELS, FOUR_SEEDS, processors=[SpatialGuidance(2.0)]).indices
    assert not torch.equal(guided, expected)


def test_neither_batches_nor_earlier_calls_matter(monkeypatch):
    """Nor which images' logits exist at a time."""
    guide = SpatialGuidance(2.0)
    together = tiny_sample(tiny_mvar(), FOUR_LABELS, FOUR_SEEDS, processors=[guide]).indices
    tiny_sample(tiny_mvar(), FOUR_LABELS, FOUR_SEEDS, processors=[guide], scales=range(2))
    alone = [
        tiny_sample(tiny_mvar(), [label], [seed], processors=[guide]).indices
        for label, seed in zip(FOUR_LABELS, FOUR_SEEDS)
    ]
    assert torch.equal(torch.cat(alone), together)
    monkeypatch.setattr(module, "_LOGITS_AT_A_TIME", 3 * 16 * 24)
    assert torch.equal(
        tiny_sample(tiny_mvar(), FOUR_LABELS, FOUR_SEEDS, processors=[guide]).indices, together
    )


def test_the_first_scale_drawn_has_nothing_before_it():
    """Also when an earlier call ended just there."""
    guide, f_hat = SpatialGuidance(2.0), torch.randn(4, 4, 4, 4)
    tiny_sample(tiny_mvar(), FOUR_LABELS, FOUR_SEEDS, processors=[guide], scales=range(2))
    found = tiny_sample(
        tiny_mvar(), FOUR_LABELS, FOUR_SEEDS, processors=[guide], scales=range(2, 3), f_hat=f_hat
    )
    plain = tiny_sample(tiny_mvar(), FOUR_LABELS, FOUR_SEEDS, scales=range(2, 3), f_hat=f_hat)
    assert torch.equal(found.indices, plain.indices)
