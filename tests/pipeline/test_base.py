"""Labels in, images out; the pipeline that fits a checkpoint; wrong input gets one clear line."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from mvar_models import MVAR, VAR, MVARPipeline, VARPipeline, list_models
from mvar_models.config import RELEASED_SIDES
from mvar_models.networks.vqvae import VQVAE
from mvar_models.pipeline import fitted, model_for, pipeline_for, pipeline_of
from mvar_models.pipeline.base import opened
from mvar_models.sampling.hooks import StopSampling
from mvar_models.sampling.sampler import Sampler

from tiny_models import NAMES, tiny_mvar, tiny_var, tiny_vqvae


@pytest.fixture
def pipeline():
    return MVARPipeline(tiny_mvar(), tiny_vqvae())


def test_output_types_agree(pipeline):
    pil = pipeline([0, 2], seed=3)
    array = pipeline([0, 2], seed=3, output_type="np").images
    tensor = pipeline([0, 2], seed=3, output_type="pt").images
    assert array.shape == (2, 16, 16, 3)
    assert array.dtype == np.uint8
    assert tensor.shape == (2, 3, 16, 16)
    assert np.array_equal(np.stack([np.array(image) for image in pil]), array)
    assert 0 <= tensor.min() and tensor.max() <= 1
    assert np.array_equal((tensor * 255).round().byte().permute(0, 2, 3, 1).numpy(), array)


def test_names_numbers_seeds_and_batches(pipeline):
    expected = pipeline([1, 2, 0], seed=[7, 8, 9], output_type="np").images
    assert np.array_equal(pipeline(["bee", "cat", "0"], seed=7, output_type="np").images, expected)
    assert np.array_equal(pipeline([1, 2, 0], seed=7, output_type="np", batch_size=2).images, expected)


def test_no_labels_give_no_images(pipeline):
    for output_type, shape in (("np", (0, 16, 16, 3)), ("pt", (0, 3, 16, 16))):
        output = pipeline([], output_type=output_type)
        assert [images.shape for images in (output.images, *output.scales)] == [shape] * 4
        assert output.indices.shape == (0, 21) and output.latents.shape == (0, 4, 4, 4)
    assert list(pipeline([])) == []


def test_one_label_needs_no_list(pipeline):
    expected = pipeline([1], seed=3, output_type="np").images
    for label in (1, "bee"):
        assert np.array_equal(pipeline(label, seed=3, output_type="np").images, expected)


def test_a_sampler_may_be_an_object(pipeline):
    expected = pipeline([0, 1], seed=3, output_type="np").images
    assert np.array_equal(pipeline([0, 1], seed=3, sampler=Sampler(), output_type="np").images, expected)


def test_progress_is_counted_in_shares_of_images(pipeline, capsys):
    pipeline([0, 1], progress=True)
    assert "2.0 of 2 images" in capsys.readouterr().err
    pipeline([0, 1])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["mvar-digits", "var-digits"])
def test_the_same_seed_gives_the_same_image_in_any_batch(name):
    """To the bit, in float32: batches of 1, 3 and 8, another order, and alone."""
    pipeline = pipeline_for(name)
    labels, seeds = [i % 10 for i in range(16)], list(range(100, 116))
    expected = pipeline(labels, seed=seeds, output_type="pt", batch_size=1).images
    for batch_size in (3, 8):
        assert torch.equal(
            pipeline(labels, seed=seeds, output_type="pt", batch_size=batch_size).images, expected
        )
    assert torch.equal(pipeline(labels[::-1], seed=seeds[::-1], output_type="pt").images.flip(0), expected)
    assert torch.equal(pipeline([5], seed=105, output_type="pt").images, expected[5:6])


def test_in_a_batch_images_differ_by_rounding_at_most(pipeline):
    alone = pipeline([0, 1, 2, 1], seed=3, output_type="pt").images
    together = pipeline([0, 1, 2, 1], seed=3, output_type="pt", batch_invariant=False).images
    assert torch.allclose(alone, together, atol=1e-5)


@pytest.mark.parametrize("dtype, largest", [(torch.float16, 10), (torch.bfloat16, 14)])
def test_half_precision(dtype, largest):
    """Half precision draws float32's digits up to a few codes; other seeds differ by 25 of 255 and more."""
    expected = pipeline_for("mvar-digits")([0, 1, 3, 7], seed=0, output_type="np").images.astype(float)
    pipeline = pipeline_for("mvar-digits", dtype=dtype)
    assert pipeline.model.dtype == pipeline.vqvae.dtype == dtype
    images = pipeline([0, 1, 3, 7], seed=0, output_type="np").images
    assert images.dtype == np.uint8 and images.shape == (4, 32, 32, 3)
    assert np.abs(images - expected).mean() < largest
    tensor = pipeline([0], seed=0, output_type="pt").images
    assert tensor.dtype == torch.float32 and tensor.isfinite().all()


@pytest.mark.parametrize("batch_invariant", [True, False])
def test_scales_on_request(pipeline, batch_invariant):
    """One result per scale; the last is the image itself, each is what the codes so far decode to."""
    seen = []
    output = pipeline(
        [0, 1, 2],
        seed=4,
        output_type="pt",
        batch_invariant=batch_invariant,
        on_scale=lambda scale, f_hat: seen.append((scale, f_hat)),
    )
    images, scales = output.images, output.scales
    assert [part.shape for part in scales] == [(3, 3, 16, 16)] * 3
    assert torch.equal(scales[-1], images)
    assert [scale for scale, _ in seen] == [0, 1, 2] * (3 if batch_invariant else 1)
    with torch.no_grad():
        for scale, part in enumerate(scales):
            f_hat = torch.cat([f_hat for number, f_hat in seen if number == scale])
            assert torch.allclose(part, (pipeline.vqvae.decode_latents(f_hat) + 1) / 2, atol=1e-5)
    assert not torch.allclose(scales[0], scales[-1], atol=1e-2)


@pytest.mark.parametrize(
    "call, match",
    [
        (dict(labels=[3]), r"label 3.*0 to 2"),
        (dict(labels=["dog"]), r"label 'dog'.*ant, bee, cat"),
        (dict(labels=[0], top_k=-1), r"top_k.*-1"),
        (dict(labels=[0], top_p=2.0), r"top_p.*2\.0"),
        (dict(labels=[0], seed=[1, 2]), r"seed.*\(1\), got 2"),
        (dict(labels=[0], output_type="jpeg"), r"output_type.*pil, np, pt, latent.*'jpeg'"),
        (dict(labels=[0], batch_size=0), r"batch_size.*got 0"),
        (dict(labels=[0], num_images_per_label=0), r"num_images_per_label.*got 0"),
        (dict(labels=[0], sampler="best"), r"sampler.*ancestral, smooth.*'best'"),
    ],
)
def test_wrong_input(pipeline, call, match):
    with pytest.raises(ValueError, match=match):
        pipeline(**call)


def test_several_images_per_label_follow_each_other(pipeline):
    expected = pipeline([2, 2, 0, 0], seed=[5, 6, 7, 8], output_type="np").images
    assert np.array_equal(pipeline([2, 0], num_images_per_label=2, seed=5, output_type="np").images, expected)


def test_generators_in_place_of_seeds(pipeline):
    """A generator per image is its seed; one generator seeds every image, and moves on."""
    expected = pipeline([0, 1], seed=[4, 9], output_type="np").images
    generators = [torch.Generator().manual_seed(seed) for seed in (4, 9)]
    assert np.array_equal(pipeline([0, 1], generator=generators, output_type="np").images, expected)
    one = torch.Generator().manual_seed(4)
    first = pipeline([0, 1], generator=one, output_type="np").images
    second = pipeline([0, 1], generator=one, output_type="np").images
    again = pipeline(
        [0, 1, 0], generator=torch.Generator().manual_seed(4), output_type="np", batch_size=2
    ).images
    assert np.array_equal(first, again[:2])
    assert (first != second).any()


def test_latents_are_what_the_decoder_takes(pipeline):
    latents = pipeline([0, 1], seed=3, output_type="latent").images
    assert latents.shape == (2, 4, 4, 4) and latents.dtype == torch.float32
    with torch.no_grad():
        decoded = (pipeline.vqvae.decode_latents(latents) + 1) / 2
    assert torch.allclose(decoded, pipeline([0, 1], seed=3, output_type="pt").images, atol=1e-5)
    scales = pipeline([0, 1], seed=3, output_type="latent").scales
    assert torch.equal(scales[-1], latents) and len(scales) == 3
    assert torch.allclose(scales[0], pipeline.vqvae.quantizer.contribution(codes_of(pipeline)[:, :1], 0))


def codes_of(pipeline):
    return pipeline([0, 1], seed=3).indices


def test_the_output_is_its_images_and_has_the_codes_behind_them(pipeline):
    output = pipeline([0, 1], seed=3)
    assert output[0] is output.images[0] and output[-1:] == output.images[1:]
    assert len(output) == 2 and list(output) == output.images
    assert output.indices.shape == (2, 21) and output.indices.dtype == torch.int64
    assert torch.allclose(pipeline.vqvae.quantizer.embed(output.indices), output.latents, atol=1e-5)
    assert [np.array(image).tolist() for image in output.scales[-1]] == [np.array(i).tolist() for i in output]


def test_each_batch_may_stop_at_another_scale(pipeline):
    """The images are there; the codes of all do not fit into one tensor."""

    def stop(scale, f_hat):
        seen.append(scale)
        if len(seen) == 2:
            raise StopSampling

    seen = []
    output = pipeline([0, 1], on_scale=stop, batch_invariant=True)
    assert seen == [0, 1, 0, 1, 2] and len(output) == 2


def test_scales_are_those_that_a_callback_left(pipeline):
    output = pipeline([0], on_scale=lambda scale, f_hat: torch.zeros_like(f_hat), output_type="latent")
    assert not any(bool(scale.any()) for scale in output.scales)


def test_components_make_the_same_pipeline(pipeline):
    again = type(pipeline)(**pipeline.components)
    assert again.model is pipeline.model and again.vqvae is pipeline.vqvae
    assert pipeline.device == torch.device("cpu") and pipeline.dtype == torch.float32
    assert pipeline.to(torch.bfloat16).dtype == torch.bfloat16


def test_models_that_do_not_fit():
    with pytest.raises(TypeError, match=r"MVAR.*got VAR"):
        MVARPipeline(tiny_var(), tiny_vqvae())
    vqvae = tiny_vqvae()
    vqvae.config = vqvae.config.replace(vocab_size=25)
    with pytest.raises(ValueError, match=r"vocab_size.*25.*24"):
        MVARPipeline(tiny_mvar(), vqvae)


_FRESH = """
import sys, numpy as np
from mvar_models.pipeline import pipeline_for
from mvar_models.sampling.hooks import StopSampling
from mvar_models.sampling.sampler import Sampler
np.save(sys.argv[2], pipeline_for(sys.argv[1])([0, "bee", 2], seed=11, output_type="np"))
"""


@pytest.mark.parametrize("kind, make", [(MVARPipeline, tiny_mvar), (VARPipeline, tiny_var)])
def test_a_saved_pipeline_draws_the_same_in_a_fresh_process(tmp_path, kind, make):
    pipeline = kind(make(), tiny_vqvae())
    pipeline.save_pretrained(tmp_path / "saved")
    subprocess.run(
        [sys.executable, "-c", _FRESH, str(tmp_path / "saved"), str(tmp_path / "out.npy")], check=True
    )
    expected = pipeline([0, 1, 2], seed=11, output_type="np").images
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected)
    assert pipeline_for(tmp_path / "saved").model.config.class_names == NAMES


def test_missing_weights_folder(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no such file or folder, and no model of that name in the zoo"
    ):
        MVARPipeline.from_pretrained(tmp_path / "nowhere")


def test_list_models():
    assert list_models("*digits") == ["vae-digits", "var-digits", "mvar-digits"]
    assert "mvar-d16" in list_models("mvar*") and "var-d16" not in list_models("mvar*")


@pytest.mark.parametrize("name", ["var-digits", "mvar-digits"])
def test_embedded_models_draw_their_classes(name):
    """Drawn ones are thin and drawn zeros are round, which broken weights would not give."""
    pipeline = pipeline_for(name)
    assert pipeline.model.config.class_names[3] == "three"
    images = (
        pipeline(["zero"] * 8 + ["one"] * 8, seed=0, output_type="np").images.astype(float).mean(-1) / 255
    )
    middle = images[:, 12:20, 13:19].mean((1, 2))
    assert middle[8:].mean() > middle[:8].mean() + 0.3, middle


@pytest.mark.parametrize("kind, make", [(VARPipeline, tiny_var), (MVARPipeline, tiny_mvar)])
def test_a_compiled_pipeline_draws_the_same(kind, make):
    """On a CPU nothing is compiled; what cannot be captured is drawn step by step, to the bit."""
    plain, compiled = kind(make(), tiny_vqvae()), kind(make(), tiny_vqvae())
    assert compiled.compile() is compiled
    for options in ({}, {"sampler": "smooth"}, {"output_type": "latent"}, {"batch_invariant": False}):
        options = {"output_type": "pt", "seed": 3, **options}
        assert torch.equal(compiled([0, 1, 2], **options).images, plain([0, 1, 2], **options).images), options
    found, expected = (each([0, 1], output_type="np").scales for each in (compiled, plain))
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def test_a_compiled_pipeline_reports_scales_to_those_who_ask(pipeline, capsys):
    """Without a callback the bar advances by batches, to the same total."""
    seen = []
    pipeline.compile()
    pipeline([0, 1], on_scale=lambda scale, f_hat: seen.append(scale), batch_invariant=False)
    assert seen == [0, 1, 2]
    pipeline([0, 1], progress=True)
    assert "2.0 of 2 images" in capsys.readouterr().err


def test_the_decoder_of_a_compiled_pipeline_may_have_its_own_type(pipeline):
    expected = pipeline([0, 1], output_type="np").images.astype(int)
    pipeline.compile(decoder_dtype=torch.bfloat16)
    found = pipeline([0, 1], output_type="np").images.astype(int)
    assert pipeline.vqvae.decoder.conv_in.weight.dtype == torch.bfloat16
    assert pipeline.vqvae.quantizer.codebook.weight.dtype == torch.float32
    assert np.abs(found - expected).mean() < 2


@pytest.mark.parametrize(
    "make, network, pipeline", [(tiny_var, VAR, VARPipeline), (tiny_mvar, MVAR, MVARPipeline)]
)
def test_the_architecture_decides(make, network, pipeline, tmp_path):
    joined = pipeline_of(make(), tiny_vqvae())
    assert type(joined) is pipeline
    joined.save_pretrained(tmp_path)
    assert type(pipeline_for(tmp_path)) is pipeline
    assert type(model_for(tmp_path)) is network


def test_a_vqvae_draws_nothing():
    with pytest.raises(ValueError, match="vae-digits"):
        pipeline_for("vae-digits")


def test_a_released_vqvae_takes_the_sides_of_the_model():
    config = tiny_vqvae().config.replace(
        sides=RELEASED_SIDES[256], channel_multipliers=(1, 1, 1, 1, 1), residual_convolution_of_scale=None
    )
    vqvae = VQVAE(config)
    other = fitted(vqvae, RELEASED_SIDES[512])
    assert other.config.sides == RELEASED_SIDES[512] and vqvae.config.sides == RELEASED_SIDES[256]
    assert next(other.parameters()) is next(vqvae.parameters())


@pytest.mark.parametrize("sides", [(1, 2, 4), (1, 2, 3)])
def test_another_vqvae_stays_as_it_is(sides):
    vqvae = tiny_vqvae()
    assert fitted(vqvae, sides) is vqvae


def test_where_a_checkpoint_is_is_taken_from_the_options(tmp_path):
    tiny_vqvae().save_pretrained(tmp_path / "vqvae")
    options = {"subfolder": "vqvae", "device": "cpu"}
    assert opened(tmp_path, options).kind() == "vqvae"
    assert options == {"device": "cpu"}
