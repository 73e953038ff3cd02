"""inpaint, outpaint and vary: what stays, what is drawn, at which cost, and what does not fit."""

import numpy as np
import pytest
import torch
from PIL import Image

from mvar_models import MVARPipeline, VARPipeline
from mvar_models.pipeline.canvas import Canvas
from mvar_models.pipeline.editing import Edit, broadcast_lists, own_scales, size_of
from mvar_models.sampling.inpainting import RULES
from mvar_models.sampling.sampler import sample
from mvar_models.sampling.settings import SamplingSettings

from tiny_models import tiny_mvar, tiny_var, tiny_vqvae

MAKE = {
    "var": lambda: VARPipeline(tiny_var(), tiny_vqvae()),
    "mvar": lambda: MVARPipeline(tiny_mvar(), tiny_vqvae()),
}
ALL, NOTHING = np.full((16, 16), 255, np.uint8), np.zeros((16, 16), np.uint8)


@pytest.fixture(params=MAKE)
def pipeline(request):
    return MAKE[request.param]()


@pytest.fixture
def image(seed):
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def half(side=16):
    mask = np.zeros((side, side), dtype=np.uint8)
    mask[:, side // 2 :] = 255
    return mask


def reconstruction(pipeline, image):
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        decoded = pipeline.vqvae.decode(pipeline.vqvae.encode(pixels))[0].permute(1, 2, 0)
    return ((decoded + 1) * 127.5).round().numpy()


def count_steps(pipeline, monkeypatch):
    """The scales that the transformer computes, in order."""
    scales, step = [], pipeline.model.step

    def counted(state, inputs, scale):
        scales.append(scale)
        return step(state, inputs, scale)

    monkeypatch.setattr(pipeline.model, "step", counted)
    return scales


@pytest.mark.parametrize("rule", RULES)
def test_a_mask_of_nothing_gives_the_image_itself(pipeline, image, rule):
    (found,) = pipeline.inpaint(image, NOTHING, labels=[1], rule=rule)
    assert np.array_equal(np.array(found), image)
    found = pipeline.inpaint(image, NOTHING, labels=[1], rule=rule, paste=False, output_type="np").images[0]
    # Of two codes that are equally near, rounding may choose the other one.
    assert (np.abs(found - reconstruction(pipeline, image)) <= 1).mean() > (
        0.8 if rule == "closed" else 0.999
    )


@pytest.mark.parametrize("paste", [True, False])
@pytest.mark.parametrize("labels, seed", [([2, 0], 5), ("bee", 7)])
def test_a_mask_of_all_is_a_fresh_image_of_the_seed(pipeline, image, paste, labels, seed):
    options = dict(labels=labels, seed=seed, guidance_scale=2.0, top_k=5, output_type="np")
    found = pipeline.inpaint(image, ALL, paste=paste, **options).images
    assert np.array_equal(found, pipeline(**options).images)


@pytest.mark.parametrize("rule", RULES)
def test_the_kept_part_stays_and_the_rest_is_drawn(pipeline, image, rule):
    first, second = pipeline.inpaint([image, image], half(), labels=[1], rule=rule, output_type="np").images
    assert np.array_equal(first[:, :8], image[:, :8])
    assert (first[:, 8:] != image[:, 8:]).any()
    assert (first != second).any(), "image i takes seed + i"


def test_what_was_in_the_hole_does_not_matter(pipeline, image):
    other = image.copy()
    other[:, 8:] = 255 - other[:, 8:]
    expected = pipeline.inpaint(image, half(), labels=[1], output_type="np").images
    assert np.array_equal(pipeline.inpaint(other, half(), labels=[1], output_type="np").images, expected)


def test_no_labels_mean_the_unconditional_class(pipeline, image):
    found = pipeline.inpaint(image, ALL, seed=3, output_type="latent").images
    config = pipeline.model.config
    labels, generators = torch.tensor([config.num_classes]), [torch.Generator().manual_seed(3)]
    settings = SamplingSettings.of(config, guidance_scale=0.0)
    drawn = sample(pipeline.model, pipeline.vqvae.quantizer, labels, generators, settings)
    assert torch.equal(found, drawn.f_hat)


def test_one_image_with_many_labels_and_many_images_with_one(pipeline, image):
    many = pipeline.inpaint(image, half(), labels=[0, 1, 2], seed=4, output_type="np").images
    assert many.shape == (3, 16, 16, 3)
    for i in range(3):
        alone = pipeline.inpaint(image, half(), labels=[i], seed=4 + i, output_type="np").images
        assert np.array_equal(many[i], alone[0])
    images = [Image.fromarray(image), Image.new("L", (16, 16), 90)]
    both = pipeline.inpaint(images, [half(), NOTHING], labels=1, num_images_per_label=2)
    assert len(both) == 4
    assert (np.array(both[2]) == 90).all() and (np.array(both[3]) == 90).all()
    assert (np.array(both[0]) != np.array(both[1])).any()


def test_batches_change_nothing(pipeline, image):
    arguments = dict(labels=[0, 1, 2], seed=4, output_type="pt")
    expected = pipeline.inpaint(image, half(), **arguments).images
    for batch_size in (2, 3):
        found = pipeline.inpaint(image, half(), batch_invariant=False, batch_size=batch_size, **arguments)
        assert torch.allclose(found.images, expected, atol=1e-4)


@pytest.mark.parametrize("size", [(16, 16), (20, 31), (40, 24), (7, 7)])
@pytest.mark.parametrize("crop", [None, 2])
def test_any_size_comes_back(pipeline, size, crop, seed):
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    mask = np.zeros(size, dtype=bool)
    mask[2:6, 3:6] = True
    found = pipeline.inpaint(image, mask, labels=[1], padding_mask_crop=crop, output_type="np").images[0]
    assert found.shape == image.shape
    assert np.array_equal(found[~mask], image[~mask])
    assert (found[mask] != image[mask]).any()


def test_output_types_agree(pipeline, image):
    arguments = dict(labels=[1], seed=2)
    array = pipeline.inpaint(image, half(), output_type="np", **arguments).images
    tensor = pipeline.inpaint(image, half(), output_type="pt", **arguments).images
    (pil,) = pipeline.inpaint(image, half(), **arguments)
    assert np.array_equal(np.array(pil), array[0])
    assert np.array_equal((tensor * 255).round().byte().permute(0, 2, 3, 1).numpy(), array)
    output = pipeline.inpaint(image, half(), **arguments)
    assert np.array_equal(np.array(output.images[0]), array[0])
    assert output.indices.shape == (1, 21)
    assert torch.equal(
        pipeline.inpaint(image, half(), output_type="latent", **arguments).images, output.latents
    )
    assert torch.allclose(pipeline.vqvae.quantizer.embed(output.indices), output.latents, atol=1e-5)


@pytest.mark.parametrize("strength, own", [(1.0, 0), (0.7, 0), (0.6, 1), (1 / 3, 2), (0.3, 2), (0.0, 3)])
def test_strength_keeps_the_coarse_codes(pipeline, image, strength, own):
    own_codes = pipeline.vqvae.encode(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1)
    result = pipeline.inpaint(image, ALL, labels=[1], strength=strength)
    same = [
        torch.equal(a, b) for a, b in zip(result.indices.split([1, 4, 16], 1), own_codes.split([1, 4, 16], 1))
    ]
    assert same == [True] * own + [False] * (3 - own)
    assert torch.allclose(pipeline.vqvae.quantizer.embed(result.indices), result.latents, atol=1e-5)


def test_ten_scales_at_a_strength_of_nine_tenths_keep_one():
    """1 - 0.9 is a little less than 0.1 in floating point."""
    assert [own_scales(strength, 10) for strength in (1, 0.9, 0.7, 0.55, 0.1, 0)] == [0, 1, 3, 4, 9, 10]


@pytest.mark.parametrize("from_scale", range(4))
def test_vary_draws_the_fine_scales(pipeline, image, from_scale, monkeypatch):
    """A Markov model computes the redrawn scales alone; VAR's cache costs all of them."""
    steps = count_steps(pipeline, monkeypatch)
    result = pipeline.vary(image, from_scale, labels=[1], seed=3)
    first = 0 if isinstance(pipeline, VARPipeline) and from_scale < 3 else from_scale
    assert steps == list(range(first, 3))
    own = pipeline.vqvae.encode(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1)
    offset = (0, 1, 5, 21)[from_scale]
    assert torch.equal(result.indices[:, :offset], own[:, :offset])
    assert from_scale == 3 or not torch.equal(result.indices[:, offset:], own[:, offset:])
    if from_scale == 0:
        assert np.array_equal(np.array(result.images[0]), pipeline([1], seed=3, output_type="np").images[0])
    if from_scale == 3:
        assert np.abs(np.array(result.images[0]) - reconstruction(pipeline, image)).max() <= 1


def test_the_codes_of_a_variation_are_those_of_teacher_forcing(pipeline, image):
    """Greedy codes of the redrawn scales follow from the image's coarse codes, in VAR through its cache."""
    result = pipeline.vary(image, 2, labels=[1], top_k=1, guidance_scale=0.0)
    with torch.no_grad():
        inputs = pipeline.vqvae.quantizer.scale_inputs(result.indices)
        logits = pipeline.model(torch.tensor([1]), inputs)
    assert torch.equal(logits[:, 5:].argmax(-1), result.indices[:, 5:])


@pytest.mark.parametrize("rule", RULES)
def test_outpaint_keeps_the_image_in_its_place(pipeline, image, rule):
    found = pipeline.outpaint(image, (4, 0, 2, 6), labels=[1], rule=rule, output_type="np").images[0]
    assert found.shape == (22, 22, 3)
    assert np.array_equal(found[:16, 4:20], image)
    around = pipeline.outpaint(image, 3, labels=[1], output_type="np").images[0]
    assert around.shape == (22, 22, 3) and np.array_equal(around[3:19, 3:19], image)
    assert np.array_equal(pipeline.outpaint(image, 0, labels=[1], output_type="np").images[0], image)


def test_hooks_and_samplers_apply(pipeline, image):
    seen = []
    options = dict(labels=[1], on_scale=lambda scale, f_hat: seen.append(scale), output_type="np")
    smooth = pipeline.inpaint(image, ALL, sampler="smooth", **options).images
    assert seen == [0, 1, 2]
    assert (smooth != pipeline.inpaint(image, ALL, **options).images).any()


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda p, i: p.inpaint(i, np.zeros((8, 16))), r"mask_image.*16 x 16, got 16 x 8"),
        (lambda p, i: p.inpaint([i, i], [NOTHING] * 3), r"image.*mask_image \(3\), got 2"),
        (lambda p, i: p.inpaint([i, i, i], NOTHING, labels=[1, 2]), r"labels.*image \(3\), got 2"),
        (lambda p, i: p.inpaint(i, NOTHING, strength=1.5), r"strength.*1\.5"),
        (lambda p, i: p.inpaint(i, NOTHING, rule="open"), r"rule.*closed, released.*'open'"),
        (lambda p, i: p.inpaint(i, NOTHING, feather=-1), r"feather.*-1"),
        (lambda p, i: p.inpaint(i, NOTHING, padding_mask_crop=-2), r"padding_mask_crop.*-2"),
        (lambda p, i: p.inpaint(i, NOTHING, output_type="jpeg").images, r"output_type.*'jpeg'"),
        (lambda p, i: p.inpaint(i, NOTHING, labels=[9]), r"label 9.*0 to 2"),
        (lambda p, i: p.inpaint(i, NOTHING, top_p=2.0), r"top_p.*2\.0"),
        (lambda p, i: p.inpaint(i * 1.0, NOTHING), r"image.*\[0, 1\]"),
        (
            lambda p, i: p.vary([i, i[:8]], 1, output_type="np").images,
            r"output_type 'np'.*16 x 16, 16 x 8.*'pil'",
        ),
        (lambda p, i: p.vary(i, 4), r"from_scale.*0 to 3, got 4"),
        (lambda p, i: p.vary(i, -1), r"from_scale.*0 to 3, got -1"),
        (lambda p, i: p.outpaint(i, (1, 2)), r"padding.*\(1, 2\)"),
        (lambda p, i: p.outpaint(i, (1, 2, 3, 0.5)), r"padding.*0\.5"),
        (lambda p, i: p.outpaint(i, -1), r"padding.*-1"),
    ],
)
def test_wrong_input(image, call, match):
    with pytest.raises((TypeError, ValueError), match=match):
        call(MAKE["mvar"](), image)


def test_lists_of_one_are_repeated():
    assert broadcast_lists(image=["a"], labels=[1, 2]) == [["a", "a"], [1, 2]]
    assert broadcast_lists(image=["a", "b"], labels=[1]) == [["a", "b"], [1, 1]]
    with pytest.raises(ValueError, match=r"image.*labels \(3\), got 2"):
        broadcast_lists(image=["a", "b"], labels=[1, 2, 3])


def test_sizes_are_written_width_first():
    assert size_of(torch.zeros(3, 4, 6)) == "6 x 4"


def test_an_unknown_rule_is_refused_before_anything_is_drawn():
    canvas = Canvas.of(torch.zeros(3, 16, 16), torch.ones(16, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"rule.*'open'"):
        Edit([canvas], "open", 0, True, None)
