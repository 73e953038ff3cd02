"""Training the VQVAE: it learns, resumes to the bit with its discriminator, keeps codes alive, and takes folders as they come."""

import logging
import sys
import types

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from mvar_models import VQVAE, VQVAEConfig
from mvar_models.cli.main import main
from mvar_models.config import SIDES_512
from mvar_models.data.digits import Digits
from mvar_models.data.open import open_images
from mvar_models.training import runs as commands
from mvar_models.training.build import new_vqvae_config
from mvar_models.training.settings import VQVAESettings
from mvar_models.training.vqvae_losses import Adversary, PatchDiscriminator, hinge_loss
from mvar_models.training.vqvae_task import VQVAETask

from odd_pictures import BROKEN, fill
from tiny_models import tiny_vqvae

TINY = dict(vocab_size=24, z_channels=4, channels=32, sides=(1, 2, 4))


def small_vqvae():
    """Fits the digits at 16 px: sides 1, 2, 4."""
    torch.manual_seed(1)
    return VQVAE(VQVAEConfig(**TINY, channel_multipliers=(1, 1, 1), blocks_per_level=1)).eval()


def task(source=None, **settings):
    source = source or Digits(16)
    config = VQVAESettings(
        **{"data": "digits", "out": "", "steps": 1000, "batch_size": 8, **TINY, **settings}
    )
    return VQVAETask(small_vqvae(), source, source.train, source.held_out, config)


def metrics(run, *names):
    return [tuple(line.get(name) for name in names) for line in run.folder.metrics()]


def interrupted_at(step):
    def interrupt(values):
        if values["step"] == step:
            raise KeyboardInterrupt

    return interrupt


def test_it_learns_and_resumes(tmp_path):
    """PSNR rises well above that of a grey picture within a few steps, and resuming is exact."""
    settings = dict(data="digits", steps=24, batch_size=8, lr=3e-3, **TINY, save_every=12, validate_every=12)
    straight = commands.start_vqvae_run(out=str(tmp_path / "straight"), **settings)
    result = commands.train_vqvae(straight)
    source = Digits(16)
    val = source.images(source.held_out)
    grey = 10 * torch.log10(4 / (val - val.mean()).square().mean())
    assert result["val_psnr"] > grey + 1
    broken = commands.start_vqvae_run(out=str(tmp_path / "broken"), **settings)
    with pytest.raises(KeyboardInterrupt):
        commands.train_vqvae(broken, interrupted_at(15))
    commands.train_vqvae(commands.start_vqvae_run(resume=str(tmp_path / "broken")))
    assert metrics(straight, "step", "loss", "val_psnr") == metrics(broken, "step", "loss", "val_psnr")


def test_the_discriminator_resumes_with_the_run(tmp_path):
    settings = dict(
        data="digits",
        steps=10,
        batch_size=4,
        lr=1e-3,
        save_every=2,
        **TINY,
        adversarial=0.5,
        adversarial_start=3,
    )
    straight = commands.start_vqvae_run(out=str(tmp_path / "straight"), **settings)
    commands.train_vqvae(straight)
    broken = commands.start_vqvae_run(out=str(tmp_path / "broken"), **settings)
    with pytest.raises(KeyboardInterrupt):
        commands.train_vqvae(broken, interrupted_at(7))
    commands.train_vqvae(commands.start_vqvae_run(resume=str(tmp_path / "broken")))
    names = ("step", "loss", "adversarial", "adversarial_balance", "discriminator", "grad_norm", "val_psnr")
    lines = metrics(straight, *names)
    assert lines == metrics(broken, *names)
    assert [line[2] is not None for line in lines[:10]] == [False] * 3 + [True] * 7, "it starts at its step"
    first, second = (VQVAE.from_pretrained(run.folder.model).state_dict() for run in (straight, broken))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("resolution", [16, 32, 64, 256])
def test_discriminator_judges_patches(resolution):
    with torch.device("meta"):
        logits = PatchDiscriminator(resolution)(torch.empty(2, 3, resolution, resolution))
    assert logits.shape[:2] == (2, 1) and 1 < logits.shape[-1] < resolution


def test_discriminator_learns_to_tell():
    """Smooth pictures from noise, in a few steps, whether it gets the batch whole or in parts."""
    adversary, parts = (Adversary(16, 1.0, 2e-3, "cpu", seed=0) for _ in range(2))
    torch.manual_seed(0)
    real, fake = torch.linspace(-1, 1, 16).expand(8, 3, 16, 16), torch.randn(8, 3, 16, 16)
    before = adversary.learn(real, fake, 1.0)["discriminator"]
    adversary.step(1.0)
    for half in (slice(0, 4), slice(4, 8)):
        parts.learn(real[half], fake[half], 0.5)
    parts.step(1.0)
    pairs = list(zip(adversary.discriminator.parameters(), parts.discriminator.parameters()))
    assert all(torch.allclose(mine, other, atol=1e-3) for mine, other in pairs)
    for _ in range(15):
        figures = adversary.learn(real, fake, 1.0)
        adversary.step(1.0)
    assert figures["judged_right"] == 1.0 and figures["discriminator"] < 0.5 * before


def test_adversarial_loss_pulls_as_hard_as_the_others():
    """At the decoder's last weight the two gradients are equally long, and the discriminator gets none of them."""
    subject = task(adversarial=1.0, adversarial_start=0)
    images = subject.batch(0)
    reconstructed = subject.compute(images)[0]
    weight, others = subject.model.decoder.conv_out.weight, (reconstructed - images).square().mean()
    loss, figures = subject.adversary.loss(reconstructed, others, weight)
    pulls = [torch.autograd.grad(term, weight, retain_graph=True)[0].norm() for term in (others, loss)]
    assert pulls[1] == pytest.approx(pulls[0].item(), rel=1e-2) and figures["adversarial_balance"] > 0
    loss.backward()
    assert all(parameter.grad is None for parameter in subject.adversary.discriminator.parameters())


def test_codes_are_chosen_in_full_precision():
    """Under autocast the encoder runs in bfloat16, the search for the nearest codes does not."""
    subject = task()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        reconstructed, _, _, features, indices = subject.compute(subject.batch(0))
    assert features.dtype == reconstructed.dtype == torch.bfloat16
    assert torch.equal(indices, subject.model.quantizer.quantize(features)[0])


def test_hinge_loss():
    assert hinge_loss(torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -2.0])) == 0
    assert hinge_loss(torch.tensor([0.0]), torch.tensor([0.5])) == pytest.approx(0.5 * (1 + 1.5))


def test_perceptual_loss_needs_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ImportError, match=r"lpips is needed here .*pip install '\.\[perceptual\]'"):
        task(perceptual=1.0)


def test_perceptual_loss_is_added(monkeypatch):
    """The library's network stands for itself by one that needs no weights: what is asked of it, and where its value goes."""

    class LPIPS(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            assert net == "vgg" and not verbose
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, first, second):
            assert first.shape == second.shape and second.min() >= -1 and second.max() <= 1
            return (first - second).abs().mean((1, 2, 3), keepdim=True) * self.scale

    module = types.ModuleType("lpips")
    module.LPIPS = LPIPS
    monkeypatch.setitem(sys.modules, "lpips", module)
    plain, subject = task(), task(perceptual=2.0)
    loss, figures = subject.loss(0)
    assert (
        loss.item() == pytest.approx(plain.loss(0)[0].item() + 2 * figures["perceptual"], rel=1e-5)
        and figures["perceptual"] > 0
    )
    loss.backward()
    assert subject.perceptual.network.scale.grad is None and not any(
        "perceptual" in name for name in subject.model.state_dict()
    )


def test_dead_codes_come_back():
    """Codes that nobody draws are put on residuals of the batch, and codes in use stay where they are."""
    subject = task()
    model = subject.model
    with torch.no_grad():
        model.quantizer.codebook.weight[12:] += 1000
    far = model.quantizer.codebook.weight.detach().clone()
    for step in range(20, 60):
        subject.loss(step)
        subject.after_step(step)
    moved = (model.quantizer.codebook.weight - far).abs().amax(1)
    assert (moved[12:] > 900).all()
    features = model.latents(subject.batch(99))
    drawn = model.quantizer(features)[3].unique()
    assert (drawn >= 12).any(), "a restarted code should be near data"


def test_a_step_in_parts_and_processes_equals_a_whole_step():
    """Codes counted and residuals taken for dead codes, whether a process has the batch, parts of it, or half of it beside another process."""
    whole, parts, first, second = (task() for _ in range(4))
    for subject, rows in (
        (whole, [None]),
        (parts, [slice(0, 3), slice(3, 8)]),
        (first, [slice(0, 4)]),
        (second, [slice(4, 8)]),
    ):
        with torch.no_grad():
            subject.model.quantizer.codebook.weight[12:] += 1000
        for part in rows:
            subject.loss(20, part)

    def summed(ask):
        return sum(ask(subject) for subject in (first, second))

    counts = whole.dead_codes.draws()
    assert torch.equal(counts, summed(lambda subject: subject.dead_codes.draws())) and counts.sum(
        1
    ).tolist() == [8, 32, 128]
    places = np.random.default_rng(0).permutation(8 * 21)[:50]
    residuals = whole.dead_codes.residuals_at(places)
    assert torch.allclose(
        residuals, summed(lambda subject: subject.dead_codes.residuals_at(places)), atol=1e-5
    )
    assert residuals.abs().amax(1).min() > 0, "every place is filled by one of them"
    whole.after_step(20)
    parts.after_step(20)
    assert torch.allclose(whole.model.quantizer.code_usage, parts.model.quantizer.code_usage)
    assert torch.allclose(
        whole.model.quantizer.codebook.weight, parts.model.quantizer.codebook.weight, atol=1e-5
    )
    assert (whole.model.quantizer.codebook.weight[12:].abs() < 500).all()


def test_straight_through_gradient_and_values():
    vqvae = tiny_vqvae()
    features = torch.randn(2, 4, 4, 4, requires_grad=True)
    f_hat, codebook, commitment, indices = vqvae.quantizer(features)
    plain_indices, plain = vqvae.quantizer.quantize(features)
    assert torch.equal(indices, plain_indices) and torch.allclose(f_hat, plain, atol=1e-5)
    (gradient,) = torch.autograd.grad(f_hat.sum(), features, retain_graph=True)
    assert torch.equal(gradient, torch.ones_like(features))
    assert torch.allclose(codebook, commitment)
    (pull,) = torch.autograd.grad(commitment, features, retain_graph=True)
    assert pull.any()
    (to_codes,) = torch.autograd.grad(codebook, vqvae.quantizer.codebook.weight)
    assert to_codes.any()


def test_validation_counts_codes_of_each_scale():
    """A scale of one place cannot use more codes than there are pictures; codes in use and their perplexity agree."""
    source = Digits(16)
    subject = task(source)
    subject.val = subject.val[:5]
    result = subject.validate()
    indices = subject.model.encode(source.images(subject.val))
    for scale, part in enumerate(indices.split([1, 4, 16], dim=1)):
        counts = np.bincount(part.flatten().numpy(), minlength=24)
        assert result["codes_used_per_scale"][scale] == pytest.approx((counts > 0).mean())
        share = counts[counts > 0] / counts.sum()
        assert result["code_perplexity_per_scale"][scale] == pytest.approx(
            np.exp(-(share * np.log(share)).sum()), rel=1e-5
        )
    assert result["codes_used_per_scale"][0] <= 5 / 24 and result["unreadable_pictures"] == 0


def test_a_folder_of_odd_and_broken_pictures_trains(tmp_path, caplog):
    """Every broken picture is counted, stood in for, and changes nothing from one run to the next; a picture shows reconstructions."""
    folder = fill(tmp_path / "mixed")
    results = []
    for name in ("one", "two"):
        run = commands.start_vqvae_run(
            data=str(folder), out=str(tmp_path / name), steps=8, batch_size=5, sample_every=4, **TINY
        )
        with caplog.at_level(logging.WARNING):
            results.append(commands.train_vqvae(run))
        losses = metrics(run, "step", "loss")
        assert sorted(path.name for path in run.folder.samples.iterdir()) == [
            "step-000004.png",
            "step-000008.png",
        ]
        assert Image.open(run.folder.samples / "step-000008.png").height == 2 * 16 + 2
    assert results[0] == results[1] and results[0]["unreadable_pictures"] == len(BROKEN)
    assert losses == metrics(commands.start_vqvae_run(resume=str(tmp_path / "one")), "step", "loss")
    assert "skipped" in caplog.text


def test_the_command_reports_what_it_could_not_read(tmp_path):
    folder = fill(tmp_path / "mixed")
    shape = ["--sides", "1,2,4", "--channels", 32, "--vocab-size", 24, "--z-channels", 4]
    result = invoke(
        "train-vqvae", "--data", folder, "--out", tmp_path / "run", "--steps", 6, "--batch-size", 5, *shape
    )
    assert result.exit_code == 0, result.output
    assert "a new VQVAE for images of 16 px: 3 scales, 21 codes of 24" in result.output
    assert (
        f"{len(BROKEN)} pictures could not be read; others of their classes stood in for them"
        in result.output
    )
    assert "codes in use at each scale: " in result.output


def test_one_picture_trains(tmp_path):
    (tmp_path / "data").mkdir()
    Image.new("RGB", (20, 20), "red").save(tmp_path / "data" / "only.png")
    run = commands.start_vqvae_run(
        data=str(tmp_path / "data"), out=str(tmp_path / "run"), steps=2, batch_size=2, **TINY
    )
    assert np.isfinite(commands.train_vqvae(run)["val_psnr"])


def test_reading_ahead_changes_nothing():
    ahead, fresh = task(), task()
    for step in range(3):
        images = ahead.batch(step)
        assert torch.equal(images, task().batch(step))
    assert torch.equal(torch.cat([fresh.batch(2, slice(0, 3)), fresh.batch(2, slice(3, 8))]), images)


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_what_is_compiled_is_called(tmp_path, monkeypatch):
    """`module.compile()` changes calls of the module alone, and a VQVAE is never called itself."""
    compiled, called = [], []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    run = commands.start_vqvae_run(
        data="digits", out=str(tmp_path / "run"), steps=1, batch_size=4, compile=True, **TINY
    )
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *rest: called.append(module))
    try:
        commands.train_vqvae(run)
    finally:
        handle.remove()
    assert len(compiled) == 2 and all(any(each is module for each in called) for module in compiled)


def test_the_command_goes_on_from_a_checkpoint(tmp_path):
    out = tmp_path / "run"
    result = invoke(
        "train-vqvae",
        "--model",
        "vae-digits",
        "--data",
        "digits",
        "--out",
        out,
        "--steps",
        1,
        "--batch-size",
        2,
        "--lr",
        1e-5,
    )
    assert result.exit_code == 0 and "held-out PSNR 3" in result.output, result.output
    assert VQVAE.from_pretrained(out / "model").config == VQVAE.from_pretrained("vae-digits").config
    assert (out / "samples" / "step-000001.png").is_file()
    wrong = [
        (
            ["--model", "vae-digits", "--sides", "1,2", "--vocab-size", 8],
            "--model has its own shape; leave out --vocab-size, --sides",
        ),
        (["--adversarial", -1], "adversarial must be at least 0, got -1"),
    ]
    for arguments, message in wrong:
        result = invoke("train-vqvae", "--data", "digits", "--out", tmp_path / "x", "--steps", 1, *arguments)
        assert result.exit_code in (1, 2) and message in result.output and not (tmp_path / "x").exists()


def test_the_released_shapes(tmp_path):
    """`resolution` gives the released model's configuration; other settings beside it count."""
    run = commands.start_vqvae_run(data="digits", out=str(tmp_path / "a"), resolution=512, vocab_size=64)
    assert new_vqvae_config(run.settings) == VQVAEConfig(sides=SIDES_512, vocab_size=64)
    assert (
        commands.describe_vqvae(run.settings)
        == "a new VQVAE for images of 512 px: 10 scales, 2240 codes of 64"
    )
    with pytest.raises(
        ValueError, match="resolution must be 256, 512 or 1024, got 300; for others give sides"
    ):
        commands.start_vqvae_run(data="digits", out=str(tmp_path / "b"), resolution=300)


def test_a_folder_opens_at_the_model_s_resolution(tmp_path):
    source = open_images(fill(tmp_path / "mixed"), 64)
    assert source.images(np.array([1])).shape == (1, 3, 64, 64)
