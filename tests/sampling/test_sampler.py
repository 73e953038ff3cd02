"""The scale loop: seeds and batches, the cache against recomputation, hooks, and the table of samplers."""

import pytest
import torch

from mvar_models.registry import resolve
from mvar_models.sampling import sampler as module
from mvar_models.sampling.sampler import Sampler, make_sampler, sample
from mvar_models.sampling.settings import SAMPLERS, SamplingSettings

from tiny_models import tiny_mvar, tiny_sample, tiny_var, tiny_vqvae

LABELS, SEEDS = [0, 1, 2, 1, 0, 2, 2, 1], range(10, 18)


@pytest.mark.parametrize("make", [tiny_var, tiny_mvar])
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "scored"])  # has its own test
def test_codes_of_a_seed_do_not_depend_on_the_batch(make, sampler):
    model = make()
    together = tiny_sample(model, LABELS, SEEDS, sampler=sampler).indices
    for index, (label, seed) in enumerate(zip(LABELS, SEEDS)):
        alone = tiny_sample(model, [label], [seed], sampler=sampler).indices[0]
        assert torch.equal(alone, together[index]), index
    reordered = tiny_sample(model, [1, 1, 0], [13, 11, 14], sampler=sampler).indices
    assert torch.equal(reordered, together[[3, 1, 4]])


@pytest.mark.parametrize("sampler, tolerance", [("ancestral", 1e-5), ("smooth", 1e-2)])
def test_few_logits_at_a_time_change_nothing(sampler, tolerance, monkeypatch):
    """Logits exist for some images at a time; which ones is a matter of memory alone.

    The smooth sampler divides by a temperature near 0.01, which amplifies the rounding of products of
    another size.
    """
    model = tiny_mvar()
    expected = tiny_sample(model, LABELS, SEEDS, sampler=sampler)
    monkeypatch.setattr(module, "_LOGITS_AT_A_TIME", 3 * 16 * 24)
    found = tiny_sample(model, LABELS, SEEDS, sampler=sampler)
    assert torch.equal(found.indices, expected.indices)
    assert torch.allclose(found.f_hat, expected.f_hat, atol=tolerance)
    assert torch.allclose(found.final_logits, expected.final_logits, atol=10 * tolerance)


@pytest.mark.parametrize("make", [tiny_var, tiny_mvar])
def test_sampled_logits_are_those_of_teacher_forcing(make):
    """Scale by scale (with VAR's cache) and all at once are the same function."""
    model, vqvae = make(), tiny_vqvae()
    result = tiny_sample(model, [0, 2], [5, 6], guidance_scale=0.0)
    with torch.no_grad():
        logits = model(torch.tensor([0, 2]), vqvae.quantizer.scale_inputs(result.indices))
    assert torch.allclose(logits[:, -16:], result.final_logits, atol=1e-4)
    assert torch.allclose(vqvae.quantizer.embed(result.indices), result.f_hat, atol=1e-5)


def test_scales_are_reported_in_order():
    seen = []
    tiny_sample(tiny_mvar(), [0], [0], on_scale=lambda scale, f_hat: seen.append((scale, tuple(f_hat.shape))))
    assert seen == [(scale, (1, 4, 4, 4)) for scale in range(3)]


def test_final_logits_are_returned_on_request():
    assert tiny_sample(tiny_mvar(), [0, 1], [0, 1]).final_logits.shape == (2, 16, 24)
    assert tiny_sample(tiny_mvar(), [0, 1], [0, 1], keep_logits=False).final_logits is None


def test_one_generator_per_image():
    with pytest.raises(ValueError, match=r"generators.*\(2\), got 1"):
        tiny_sample(tiny_mvar(), [0, 1], [0])


@pytest.mark.parametrize("options, match", [({"top_k": -1}, "top_k.*-1"), ({"top_p": 2.0}, r"top_p.*2\.0")])
def test_wrong_filters_are_refused_before_anything_runs(options, match):
    with pytest.raises(ValueError, match=match):
        tiny_sample(None, [0], [0], **options)


def test_generators_are_read_once_per_token():
    """The stream of an image's generator moves on by one float64 per token, whatever the model."""
    generator = torch.Generator().manual_seed(0)
    settings = SamplingSettings(guidance_scale=0.0, top_k=0, top_p=0.0)
    sample(tiny_mvar(), tiny_vqvae().quantizer, torch.tensor([0]), [generator], settings)
    expected = torch.Generator().manual_seed(0)
    torch.rand(1 + 4 + 16, generator=expected, dtype=torch.float64)
    assert torch.equal(generator.get_state(), expected.get_state())


def test_every_row_of_the_table_is_a_sampler():
    for name, path in SAMPLERS.items():
        assert issubclass(resolve(path), Sampler), name
        assert type(make_sampler(name)) is resolve(path)


def test_a_sampler_is_taken_as_it_is():
    own = Sampler()
    assert make_sampler(own) is own


def test_unknown_samplers_are_refused():
    with pytest.raises(ValueError, match=r"sampler.*ancestral, smooth.*'greedy'"):
        SamplingSettings(1.0, 0, 0.0, sampler="greedy")


def test_choices_say_which_scale_and_which_images():
    seen = []

    class Watching(Sampler):
        def choose(self, logits, context):
            seen.append(
                (
                    context.scale,
                    context.progress,
                    context.images,
                    tuple(logits.shape),
                    len(context.generators),
                )
            )
            return super().choose(logits, context)

    found = tiny_sample(tiny_mvar(), [0, 1], [3, 4], sampler=Watching())
    assert torch.equal(found.indices, tiny_sample(tiny_mvar(), [0, 1], [3, 4]).indices)
    assert seen == [(s, s / 2, slice(0, 2), (2, side * side, 24), 2) for s, side in enumerate((1, 2, 4))]


def test_a_choice_for_some_images_knows_theirs_alone(monkeypatch):
    """With logits for one image at a time, labels and f_hat are of that image."""
    seen = []

    class Watching(Sampler):
        def choose(self, logits, context):
            seen.append((context.scale, context.images, context.labels.tolist(), len(context.f_hat)))
            return super().choose(logits, context)

    monkeypatch.setattr(module, "_LOGITS_AT_A_TIME", 16 * 24)
    tiny_sample(tiny_mvar(), LABELS, SEEDS, sampler=Watching())
    finest = [each[1:] for each in seen if each[0] == 2]
    assert finest == [(slice(i, i + 1), [label], 1) for i, label in enumerate(LABELS)]


def test_what_after_scale_returns_is_the_input_of_the_next_scale():
    class Silent(Sampler):
        def after_scale(self, scale, f_hat):
            return torch.zeros_like(f_hat) if scale < 2 else f_hat

    model, vqvae = tiny_mvar(), tiny_vqvae()
    result = tiny_sample(model, [1], [3], guidance_scale=0.0, sampler=Silent())
    with torch.no_grad():
        state = model.new_state(torch.tensor([1]))
        logits = model.logits(model.step(state, torch.zeros(1, 16, 4), 2), state.class_embedding)
        last = vqvae.quantizer.contribution(result.indices[:, -16:], 2)
    assert torch.allclose(result.final_logits, logits, atol=1e-5)
    assert torch.allclose(result.f_hat, last, atol=1e-5)
