"""Drafting: coarse scales of one model, fine ones of another."""

import json

import pytest
import torch
from click.testing import CliRunner

from mvar_models.cli.main import main
from mvar_models.pipeline import pipeline_of

from tiny_models import tiny_markov_var, tiny_mvar, tiny_var, tiny_vqvae

OPTIONS = {"seed": 4, "output_type": "np", "guidance_scale": 2.0, "top_k": 5}


@pytest.fixture(scope="module")
def pipelines():
    """VAR and MVAR with one VQVAE and other weights, whose presets are those of OPTIONS."""
    vqvae = tiny_vqvae()
    made = {"var": tiny_var(), "mvar": tiny_mvar(), "markov": tiny_markov_var()}
    for seed, model in enumerate(made.values()):
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.head.weight)
        model.config = model.config.replace(guidance_scale=2.0, top_k=5)
    return {name: pipeline_of(model, vqvae) for name, model in made.items()}


@pytest.mark.parametrize("name", ["var", "mvar", "markov"])
@pytest.mark.parametrize("refine_from", [1, 2])
@pytest.mark.parametrize("batch", [{}, {"batch_size": 2, "batch_invariant": False}], ids=["alone", "batches"])
def test_a_model_that_refines_its_own_draft_gives_the_plain_image(pipelines, name, refine_from, batch):
    """The handover changes nothing: same numbers, same f_hat, the cache of coarse scales rebuilt."""
    pipeline = pipelines[name]
    plain = pipeline([0, 1, 2], **OPTIONS, **batch)
    drafted = pipeline([0, 1, 2], **OPTIONS, **batch, refiner=pipeline, refine_from=refine_from)
    assert torch.equal(drafted.indices, plain.indices) and (drafted.images == plain.images).all()
    assert len(drafted.scales) == len(plain.scales)


@pytest.mark.parametrize("draft, refiner", [("var", "mvar"), ("mvar", "var"), ("mvar", "markov")])
def test_coarse_codes_are_the_drafters_and_fine_ones_the_refiners(pipelines, draft, refiner):
    first = pipelines[draft]
    offset = first.model.pyramid.offsets[2]
    seen = []
    drafted = first(
        [1, 2], **OPTIONS, refiner=pipelines[refiner], refine_from=2,
        on_scale=lambda scale, f_hat: seen.append(scale),
    )  # fmt: skip
    plain = first([1, 2], **OPTIONS)
    assert torch.equal(drafted.indices[:, :offset], plain.indices[:, :offset])
    assert not torch.equal(drafted.indices[:, offset:], plain.indices[:, offset:])
    assert seen == [0, 1, 2] * 2
    # The refiner samples as it would go on from that image.
    image = pipelines[refiner].vqvae.quantizer.embed(drafted.indices)
    assert torch.allclose(drafted.latents, image, atol=1e-5)


def test_generators_are_read_once(pipelines):
    """A generator of the caller moves on as after a plain call, and both models see its numbers."""
    pipeline = pipelines["mvar"]
    options = {name: value for name, value in OPTIONS.items() if name != "seed"}
    first, second = torch.Generator().manual_seed(9), torch.Generator().manual_seed(9)
    plain = pipeline([0], generator=[first], **options)
    drafted = pipeline([0], generator=[second], **options, refiner=pipeline, refine_from=1)
    assert torch.equal(plain.indices, drafted.indices)
    assert torch.equal(first.get_state(), second.get_state())


def test_the_refiner_has_its_own_preset(pipelines):
    """Settings of the call are the drafter's: a greedy draft does not make a greedy refiner."""
    model = tiny_mvar()
    model.config = model.config.replace(guidance_scale=0.0, top_k=1)
    refiner = pipeline_of(model, pipelines["mvar"].vqvae)
    outs = [
        pipelines["mvar"]([1], seed=seed, top_k=1, refiner=refiner, refine_from=2, output_type="latent")
        for seed in (1, 2)
    ]
    assert torch.equal(outs[0].indices, outs[1].indices)


def test_what_does_not_fit_is_named(pipelines):
    pipeline = pipelines["mvar"]
    with pytest.raises(ValueError, match="refiner and refine_from go together"):
        pipeline(0, refiner=pipeline)
    with pytest.raises(ValueError, match="refine_from must be"):
        pipeline(0, refiner=pipeline, refine_from=3)
    vqvae = tiny_vqvae()
    with torch.no_grad():
        vqvae.quantizer.codebook.weight[0, 0] += 1
    with pytest.raises(ValueError, match="refiner has another VQVAE"):
        pipeline(0, refiner=pipeline_of(tiny_var(), vqvae), refine_from=1)
    fewer = tiny_var()
    fewer.replace_classes(2)
    with pytest.raises(ValueError, match="refiner does not fit the model: num_classes is 2, the model has 3"):
        pipeline(0, refiner=pipeline_of(fewer, pipeline.vqvae), refine_from=1)


def test_the_command_records_the_refiner(tmp_path):
    """So that --again samples the same images, with the settings that both models had."""
    pipeline_of(tiny_var(), tiny_vqvae()).save_pretrained(tmp_path / "var")
    pipeline_of(tiny_mvar(), tiny_vqvae()).save_pretrained(tmp_path / "mvar")
    names = ["--model", str(tmp_path / "var"), "--refiner", str(tmp_path / "mvar")]
    options = [
        *names,
        "--refine-from",
        "1",
        "--n",
        "1",
        "--guidance-scale",
        "3",
        "--out",
        str(tmp_path / "a"),
    ]
    result = CliRunner().invoke(main, ["sample", *options])
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "a" / "samples.json").read_text())
    assert record["refiner_settings"]["guidance_scale"] == 3 and record["refine_from"] == 1
    again = ["sample", "--again", str(tmp_path / "a" / "samples.json"), "--out", str(tmp_path / "b")]
    assert CliRunner().invoke(main, again).exit_code == 0
    for file in sorted((tmp_path / "a").glob("0*.png")):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    other = pipeline_of(tiny_markov_var(), tiny_vqvae())
    other.save_pretrained(tmp_path / "mvar2")
    record["refiner"] = str(tmp_path / "mvar2")
    (tmp_path / "a" / "samples.json").write_text(json.dumps(record))
    result = CliRunner().invoke(main, again)
    assert result.exit_code == 1 and "mvar2 holds other weights now" in result.output
