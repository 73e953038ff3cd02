"""Training a scorer on a model's samples, and sampling with it, by the commands."""

import json

import numpy as np
import pytest
import torch

from mvar_models import MVAR, VQVAE, MVARConfig, VQVAEConfig
from mvar_models.networks.scorer import Scorer
from mvar_models.pipeline import pipeline_for, pipeline_of
from mvar_models.tokens.token_set import TokenSet
from mvar_models.training.scorer_task import ScorerTask
from mvar_models.training.settings import ScorerSettings

from run_cases import invoke, make_data

SIDES = (1, 2, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of two classes, and an MVAR of 16 px whose last side is 8."""
    folder = make_data(tmp_path_factory.mktemp("scorer"))
    torch.manual_seed(0)
    shape = {"vocab_size": 24, "z_channels": 4, "sides": SIDES}
    vqvae = VQVAE(VQVAEConfig(**shape, channels=32, channel_multipliers=(1, 1), blocks_per_level=1))
    model = MVAR(
        MVARConfig(
            **shape, depth=1, width=32, num_heads=2, num_classes=2, class_names=("ant", "bee"), top_k=0,
            top_p=0.0, kernel_size=3, dense_scales=2,
        )
    )  # fmt: skip
    pipeline_of(model, vqvae).save_pretrained(folder / "model")
    return folder


def train(folder, out, *more):
    return invoke(
        "train-scorer", "--model", folder / "model", "--data", folder / "data", "--out", folder / out,
        "--per-class", 10, "--width", 8, "--batch-size", 4, "--steps", 6, "--save-every", 3,
        "--device", "cpu", "--accept-psnr", *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(folder):
    result = train(folder, "run")
    assert result.exit_code == 0, result.output
    return folder / "run", result.output


def test_a_run_samples_trains_and_writes_a_scorer(folder, trained):
    run, output = trained
    assert "held-out pairs in order at each scale: " in output
    scorer = Scorer.from_pretrained(run / "model")
    assert scorer.config.sides == SIDES and scorer.config.num_classes == 2
    sampled = np.load(run / "sampled.npy")
    seventh = pipeline_for(folder / "model")([0], seed=7, output_type="latent", batch_invariant=False)
    assert sampled.shape == (20, 69) and (sampled[7] == seventh.indices[0].numpy()).mean() > 0.9


def test_a_stopped_run_ends_as_the_uninterrupted_one(folder, trained):
    """Pairs and dropout follow from seed and step; the samples are read, not sampled again."""
    assert train(folder, "stopped", "--steps", 3).exit_code == 0
    config = folder / "stopped" / "config.yaml"
    config.write_text(config.read_text().replace("steps: 3", "steps: 6"))
    # The learning rate follows the number of steps, so the first three are repeated under the new one.
    for part in (folder / "stopped" / "checkpoints").iterdir():
        for file in part.iterdir():
            file.unlink()
        part.rmdir()
    result = invoke("train-scorer", "--resume", folder / "stopped")
    assert result.exit_code == 0, result.output
    whole, again = (Scorer.from_pretrained(each / "model") for each in (trained[0], folder / "stopped"))
    for (name, one), other in zip(whole.named_parameters(), again.parameters()):
        assert torch.equal(one, other), name


def test_the_loss_falls_where_samples_and_images_differ():
    """And with the two swapped the scorer prefers the samples, which would keep the worst candidates."""
    rng = np.random.default_rng(0)
    real = TokenSet(rng.integers(0, 4, (1, 8, 69)).astype(np.uint16), np.repeat([0, 1], 4))
    fake = TokenSet(rng.integers(20, 24, (1, 20, 69)).astype(np.uint16), np.repeat([0, 1], 10))
    torch.manual_seed(0)
    vqvae = VQVAE(
        VQVAEConfig(
            vocab_size=24, z_channels=4, sides=SIDES, channels=32, channel_multipliers=(1, 1),
            blocks_per_level=1,
        )
    )  # fmt: skip
    scorer = Scorer(Scorer.config_class(num_classes=2, z_channels=4, sides=SIDES, width=8))
    settings = ScorerSettings(data="", out="", per_class=10, batch_size=8)
    task = ScorerTask(scorer, vqvae.quantizer, real, real, fake, settings)
    optimizer = torch.optim.Adam(scorer.parameters(), 1e-2)
    for step in range(20):
        optimizer.zero_grad()
        task.loss(step)[0].backward()
        optimizer.step()
    scorer.eval()
    figures = task.validate()
    assert figures["val_loss"] < 0.2 and min(figures["val_accuracy_per_scale"]) > 0.8
    maps = [list(vqvae.quantizer.accumulate(each.batch(np.array([0]))[1]))[-1] for each in (real, fake)]
    scores = [scorer(each, torch.tensor([0]), 2).item() for each in maps]
    assert scores[0] > scores[1]


def test_flags_sample_with_the_scorer_and_the_record_repeats_it(folder, trained):
    run, _ = trained
    base = ["sample", "--model", folder / "model", "--n", 2, "--device", "cpu"]
    scored = ["--scorer", run / "model", "--candidates", 6, "--candidate-scales", "0:"]
    for name, options in (("plain", []), ("one", [*scored[:2], "--candidates", 1]), ("six", scored)):
        result = invoke(*base, *options, "--out", folder / name)
        assert result.exit_code == 0, result.output
    images = {name: (folder / name / "00000_ant.png").read_bytes() for name in ("plain", "one", "six")}
    assert images["plain"] == images["one"] != images["six"]
    settings = json.loads((folder / "six" / "samples.json").read_text())["settings"]
    assert settings["scorer"] == str(run / "model") and settings["candidates"] == 6
    result = invoke("sample", "--again", folder / "six" / "samples.json", "--out", folder / "again")
    assert result.exit_code == 0 and (folder / "again" / "00000_ant.png").read_bytes() == images["six"]


def test_what_cannot_be_scored_is_refused_at_the_start(folder):
    result = invoke(
        "train-scorer",
        "--model",
        "var-digits",
        "--data",
        folder / "data",
        "--out",
        folder / "other",
        "--steps",
        1,
        "--accept-psnr",
    )
    assert "the data has 2 classes, the model 10" in result.output
    with pytest.raises(ValueError, match="a scorer needs a last side that is divisible by 8, got 4"):
        Scorer.config_class(num_classes=2, z_channels=4, sides=(1, 2, 4))


def test_the_learning_rate_warms_up_for_a_quarter_and_ends_near_zero():
    factors = [ScorerTask.learning_rate_factor(None, step, 100) for step in range(100)]
    assert np.argmax(factors) == 25 and factors[25] == 1 and factors[0] < 0.05 and factors[99] < 0.001
    assert (np.diff(factors[:26]) > 0).all() and (np.diff(factors[25:]) < 0).all()
