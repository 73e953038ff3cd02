"""Neon: the two ends of the line, what is trained on, further weights without training, and its errors."""

import shutil

import numpy as np
import pytest
import torch

from mvar_models import MVAR, MVARPipeline
from mvar_models.checkpoints.push import CardFacts, model_card
from mvar_models.data.open import open_images
from mvar_models.images import to_uint8
from mvar_models.pipeline import pipeline_for
from mvar_models.tokens.folder import TokenFolder
from mvar_models.training.neon import extrapolated, train_on_samples
from mvar_models.training.run_folder import RunFolder

from command_cases import mvar
from run_cases import make_data
from tiny_models import NAMES, tiny_mvar, tiny_var, tiny_vqvae

TRAINING = "--per-class 4 --steps 2 --batch-size 4 --lr 0.01 --device cpu"
SAMPLED = dict(num_images_per_label=4, seed=3, output_type="latent", batch_invariant=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Saved tiny models, and what two commands make of the MVAR."""
    folder = tmp_path_factory.mktemp("neon")
    for name, model in (("mvar", tiny_mvar()), ("var", tiny_var())):
        model.save_pretrained(folder / name)
        tiny_vqvae().save_pretrained(folder / name / "vqvae")
    for samples in ("images", "codes"):
        result = mvar(
            f"neon {TRAINING} --samples {samples} --weight=-1,0,0.5 --seed 3 --model", folder / "mvar",
            "-o", folder / samples,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
    return folder


def weights(place):
    return MVAR.from_pretrained(place).state_dict()


@pytest.mark.parametrize("samples", ["images", "codes"])
def test_weight_0_is_the_model_and_weight_minus_1_the_self_trained_bit_for_bit(folder, samples):
    base, trained = weights(folder / "mvar"), weights(folder / samples / "self" / "model")
    assert any(not torch.equal(base[name], trained[name]) for name in base)
    for weight, expected in (("0", base), ("-1", trained), ("0.5", None)):
        found = weights(folder / samples / f"weight-{weight}")
        for name, value in found.items():
            formula = base[name] + 0.5 * (base[name] - trained[name]) if expected is None else expected[name]
            assert value.dtype == torch.float32
            assert (
                torch.allclose(value, formula, atol=1e-6) if expected is None else torch.equal(value, formula)
            )
    plain, same = (pipeline_for(folder / name) for name in ("mvar", f"{samples}/weight-0"))
    assert (plain([0, 1], output_type="np").images == same([0, 1], output_type="np").images).all()


def codes_of(tokens):
    data = TokenFolder(tokens)
    train, held_out = data.token_sets(tiny_vqvae())
    found = np.empty((len(data), 21), dtype=np.int64)
    for part, members in ((train, data.train), (held_out, data.held_out)):
        found[members] = part.batch(np.arange(len(part)))[1].numpy()
    return data, torch.from_numpy(found)


def test_it_trains_on_its_own_samples(folder):
    """Of seeds that count on from --seed, class by class: as they are, or decoded to 8 bits and encoded."""
    pipeline, vqvae = pipeline_for(folder / "mvar"), tiny_vqvae()
    sampled = pipeline([0, 1, 2], **SAMPLED).indices
    data, codes = codes_of(folder / "codes" / "tokens-codes")
    assert data.class_names == NAMES and data.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.num_variants == 1
    assert torch.equal(codes, sampled)
    decoded = torch.from_numpy(to_uint8(vqvae.decode(sampled))).permute(0, 3, 1, 2) / 127.5 - 1
    again = codes_of(folder / "images" / "tokens-images")[1]
    assert torch.equal(again, vqvae.encode(decoded))
    assert not torch.equal(again, sampled)


def test_guidance_of_the_samples_may_be_given(folder, tmp_path):
    result = mvar(
        f"neon {TRAINING} --samples codes --seed 3 --guidance-scale 0 --top-k 2 --model", folder / "mvar",
        "-o", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    pipeline = pipeline_for(folder / "mvar")
    sampled = pipeline([0, 1, 2], guidance_scale=0, top_k=2, **SAMPLED).indices
    assert torch.equal(codes_of(tmp_path / "tokens-codes")[1], sampled)
    # The preset of the model stays what it was.
    assert pipeline_for(tmp_path / "weight-1").model.config.top_k == pipeline.model.config.top_k


def test_further_weights_need_no_training(folder, tmp_path):
    run = folder / "images" / "self"
    before = (run / "metrics.jsonl").read_text()
    result = mvar("neon --weight 0.5,2 --device cpu --self", run, "-o", tmp_path)
    assert result.exit_code == 0, result.output
    first, again = weights(folder / "images" / "weight-0.5"), weights(tmp_path / "weight-0.5")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert (tmp_path / "weight-2").is_dir() and not (tmp_path / "self").exists()
    assert (run / "metrics.jsonl").read_text() == before


def test_a_model_says_what_it_is(folder):
    pipeline = MVARPipeline.from_pretrained(folder / "codes" / "weight-0.5")
    assert "Neon" in pipeline.model.config.origin and "weight 0.5" in pipeline.model.config.origin
    card = str(model_card(CardFacts("MVARPipeline", pipeline.model.config, 1), "a/b"))
    assert "| origin | Neon" in card
    assert "origin" not in str(model_card(CardFacts("MVARPipeline", tiny_mvar().config, 1), "a/b"))


def test_a_var_stays_a_var(folder, tmp_path):
    result = mvar(f"neon {TRAINING} --model", folder / "var", "-o", tmp_path)
    assert result.exit_code == 0, result.output
    assert pipeline_for(tmp_path / "weight-1").model.config.model_type == "var"


def test_real_images_are_the_control(folder, tmp_path):
    """They take the same way through the VQVAE; nothing that is held out is read."""
    make_data(tmp_path)
    shutil.copytree(tmp_path / "data" / "bee", tmp_path / "data" / "cat")
    out = tmp_path / "out"
    result = mvar(
        f"neon {TRAINING} --accept-psnr --data", tmp_path / "data", "--model", folder / "mvar", "-o", out
    )
    assert result.exit_code == 0, result.output
    data, codes = codes_of(out / "tokens-images")
    source, vqvae = open_images(tmp_path / "data", 16), tiny_vqvae()
    members = np.concatenate([source.train[source.labels[source.train] == label][:4] for label in range(3)])
    assert data.labels.tolist() == source.labels[members].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    decoded = to_uint8(vqvae.decode(vqvae.encode(source.images(members))))
    assert torch.equal(codes, vqvae.encode(torch.from_numpy(decoded).permute(0, 3, 1, 2) / 127.5 - 1))


def test_what_was_trained_is_not_overwritten(folder):
    result = mvar(f"neon {TRAINING} --seed 3 --model", folder / "mvar", "-o", folder / "images")
    assert result.exit_code == 1
    assert "already holds a run" in result.output
    result = mvar(f"neon {TRAINING} --seed 4 --model", folder / "mvar", "-o", folder / "images")
    assert result.exit_code == 1
    assert "data_fingerprint" in result.output


@pytest.mark.parametrize(
    "text, message",
    [
        ("--weight 1 -o x", "give --model, --per-class and --steps to train, or --self"),
        ("--model mvar-digits --steps 3 -o x", "give --model, --per-class and --steps to train, or --self"),
        (
            "--self run --model mvar-digits --lr 1 -o x",
            "--self has its model and training; leave out --model, --lr",
        ),
        ("--self run -o x", "run holds no run"),
        ("--model mvar-digits --per-class 1 --steps 1 --weight much -o x", "numbers separated by commas"),
    ],
)
def test_wrong_commands_are_one_line(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = mvar(f"neon {text}")
    assert result.exit_code in (1, 2)
    assert message in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())


def test_wrong_runs_are_named(folder, tmp_path):
    pipeline, run = pipeline_for(folder / "mvar"), RunFolder(folder / "images" / "self")
    with pytest.raises(ValueError, match=r"images.self must have trained the model further"):
        extrapolated(MVARPipeline(tiny_mvar().with_previous_scales(1), tiny_vqvae()), run, 1.0)
    with pytest.raises(ValueError, match=r"weight.*number.*nan"):
        extrapolated(pipeline, run, float("nan"))
    names = str(folder / "mvar"), str(folder / "mvar" / "vqvae")
    with pytest.raises(ValueError, match="samples must be one of images, codes, got 'pixels'"):
        train_on_samples(pipeline, tmp_path, names=names, per_class=1, samples="pixels")
    with pytest.raises(ValueError, match=r"data must have the classes of .*mvar.* has others"):
        data = str(make_data(tmp_path / "two") / "data")
        train_on_samples(pipeline, tmp_path, names=names, per_class=1, data=data)
    averaged = train_on_samples(pipeline, tmp_path, names=names, per_class=4, steps=1, batch_size=4, ema=0.9)
    with pytest.raises(ValueError, match="without a moving average"):
        extrapolated(pipeline, averaged, 1.0)
