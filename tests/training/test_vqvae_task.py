"""A VQVAE learns, resumes to the same bits with its discriminator, and takes folders as they come."""

import logging
import os

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from mvar_models import VQVAE
from mvar_models.cli.main import main
from mvar_models.data.digits import Digits
from mvar_models.data.open import open_images
from mvar_models.evaluation.reconstruction import psnr
from mvar_models.training import runs

from odd_images import BROKEN, fill, plain_folder
from tiny_models import tiny_vqvae
from vqvae_cases import TINY, task


def metrics(run, *names):
    return [tuple(line.get(name) for name in names) for line in run.folder.metrics()]


def interrupted_at(step):
    def interrupt(values):
        if values["step"] == step:
            raise KeyboardInterrupt

    return interrupt


def test_it_learns_and_resumes(tmp_path):
    """PSNR rises well above that of a grey image within a few steps, and resuming is exact."""
    settings = dict(data="digits", steps=24, batch_size=8, lr=3e-3, **TINY, save_every=12, validate_every=12)
    straight = runs.start_vqvae_run(out=str(tmp_path / "straight"), **settings)
    result = runs.train_vqvae(straight)
    source = Digits(16)
    val = source.images(source.held_out)
    grey = 10 * torch.log10(4 / (val - val.mean()).square().mean())
    assert result["val_psnr"] > grey + 1
    broken = runs.start_vqvae_run(out=str(tmp_path / "broken"), **settings)
    with pytest.raises(KeyboardInterrupt):
        runs.train_vqvae(broken, interrupted_at(15))
    runs.train_vqvae(runs.start_vqvae_run(resume=str(tmp_path / "broken")))
    assert metrics(straight, "step", "loss", "val_psnr") == metrics(broken, "step", "loss", "val_psnr")


def test_resuming_on_images_that_were_written_again_is_said(tmp_path, caplog):
    """They may be a copy, so that is no error; other names or sizes are one."""
    plain_folder(tmp_path / "photos")
    settings = dict(steps=5, batch_size=2, **TINY, save_every=1)
    run = runs.start_vqvae_run(data=str(tmp_path / "photos"), out=str(tmp_path / "run"), **settings)
    with pytest.raises(KeyboardInterrupt):
        runs.train_vqvae(run, interrupted_at(2))
    for touched, stop in ((False, 3), (True, 4)):
        if touched:
            os.utime(tmp_path / "photos" / "red" / "0.png", (1e9, 1e9))
        with pytest.raises(KeyboardInterrupt):
            runs.train_vqvae(runs.start_vqvae_run(resume=str(tmp_path / "run")), interrupted_at(stop))
        assert caplog.text.count(f"{tmp_path / 'run'} trains on were written again since") == touched


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
    straight = runs.start_vqvae_run(out=str(tmp_path / "straight"), **settings)
    runs.train_vqvae(straight)
    broken = runs.start_vqvae_run(out=str(tmp_path / "broken"), **settings)
    with pytest.raises(KeyboardInterrupt):
        runs.train_vqvae(broken, interrupted_at(7))
    runs.train_vqvae(runs.start_vqvae_run(resume=str(tmp_path / "broken")))
    names = ("step", "loss", "adversarial", "adversarial_balance", "discriminator", "grad_norm", "val_psnr")
    lines = metrics(straight, *names)
    assert lines == metrics(broken, *names)
    assert [line[2] is not None for line in lines[:10]] == [False] * 3 + [True] * 7, "it starts at its step"
    first, second = (VQVAE.from_pretrained(run.folder.model).state_dict() for run in (straight, broken))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_codes_are_chosen_in_full_precision():
    """Under autocast the encoder runs in bfloat16, the search for the nearest codes does not."""
    subject = task()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        reconstructed, _, _, features, indices = subject.compute(subject.batch(0))
    assert features.dtype == reconstructed.dtype == torch.bfloat16
    assert torch.equal(indices, subject.model.quantizer.quantize(features)[0])


def test_straight_through_gradient_and_values():
    vqvae = tiny_vqvae()
    features = torch.randn(2, 4, 4, 4, requires_grad=True)
    f_hat, codebook, commitment, indices = vqvae.quantizer(features)
    plain_indices, plain = vqvae.quantizer.quantize(features)
    assert torch.equal(indices, plain_indices)
    assert torch.allclose(f_hat, plain, atol=1e-5)
    (gradient,) = torch.autograd.grad(f_hat.sum(), features, retain_graph=True)
    assert torch.equal(gradient, torch.ones_like(features))
    assert torch.allclose(codebook, commitment)
    (pull,) = torch.autograd.grad(commitment, features, retain_graph=True)
    assert pull.any()
    (to_codes,) = torch.autograd.grad(codebook, vqvae.quantizer.codebook.weight)
    assert to_codes.any()


def test_validation_counts_codes_of_each_scale():
    """A scale of one place cannot use more codes than there are images; codes in use and their perplexity
    agree.
    """
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
    assert result["codes_used_per_scale"][0] <= 5 / 24
    assert result["unreadable_pictures"] == 0


def test_a_folder_of_odd_and_broken_pictures_trains(tmp_path, caplog):
    """Every broken image is counted, stood in for, and changes nothing from one run to the next; a image
    shows reconstructions.
    """
    folder = fill(tmp_path / "mixed")
    results = []
    for name in ("one", "two"):
        run = runs.start_vqvae_run(
            data=str(folder), out=str(tmp_path / name), steps=8, batch_size=5, sample_every=4, **TINY
        )
        with caplog.at_level(logging.WARNING):
            results.append(runs.train_vqvae(run))
        losses = metrics(run, "step", "loss")
        assert sorted(path.name for path in run.folder.samples.iterdir()) == [
            "step-000004.png",
            "step-000008.png",
        ]
        assert Image.open(run.folder.samples / "step-000008.png").height == 2 * 16 + 2
    assert results[0] == results[1]
    assert results[0]["unreadable_pictures"] == len(BROKEN)
    assert losses == metrics(runs.start_vqvae_run(resume=str(tmp_path / "one")), "step", "loss")
    assert "skipped" in caplog.text


def test_the_command_reports_what_it_could_not_read(tmp_path):
    folder = fill(tmp_path / "mixed")
    shape = ["--sides", "1,2,4", "--channels", 32, "--vocab-size", 24, "--z-channels", 4]
    result = invoke(
        "train-vqvae", "--data", folder, "--out", tmp_path / "run", "--steps", 6, "--batch-size", 5, *shape
    )
    assert result.exit_code == 0, result.output
    assert "a new VQVAE for images of 16 px: 3 scales, 21 codes of 24" in result.output
    assert f"{len(BROKEN)} images could not be read" in result.output
    assert "codes in use at each scale: " in result.output


def test_one_image_trains(tmp_path):
    """It is trained on and validated on, and a few steps bring its reconstruction nearer."""
    (tmp_path / "data").mkdir()
    Image.new("RGB", (20, 20), "red").save(tmp_path / "data" / "only.png")

    def trained(steps):
        run = runs.start_vqvae_run(
            data=str(tmp_path / "data"), out=str(tmp_path / f"run{steps}"), steps=steps, batch_size=2, **TINY
        )
        return run, runs.train_vqvae(run)

    (_, before), (run, after) = trained(0), trained(12)
    assert after["val_psnr"] > before["val_psnr"] + 3
    assert after["unreadable_pictures"] == 0
    assert after["codes_used_per_scale"][0] == pytest.approx(1 / 24), "one image has one code at scale 1 x 1"
    model, source = VQVAE.from_pretrained(run.folder.model), open_images(tmp_path / "data", 16)
    assert len(source) == 1
    image = source.images(np.array([0]))
    assert psnr(model.decode(model.encode(image)), image).item() == pytest.approx(after["val_psnr"], abs=1e-3)


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
    run = runs.start_vqvae_run(
        data="digits", out=str(tmp_path / "run"), steps=1, batch_size=4, compile=True, **TINY
    )
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *rest: called.append(module))
    try:
        runs.train_vqvae(run)
    finally:
        handle.remove()
    assert len(compiled) == 2
    assert all(any(each is module for each in called) for module in compiled)


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
    assert result.exit_code == 0, result.output
    assert "held-out PSNR 3" in result.output
    assert VQVAE.from_pretrained(out / "model").config == VQVAE.from_pretrained("vae-digits").config
    assert (out / "samples" / "step-000001.png").is_file()
    wrong = [
        (
            ["--model", "vae-digits", "--sides", "1,2", "--vocab-size", 8],
            "--model has its own shape; leave out --vocab-size, --sides",
        ),
        (["--adversarial", -1], "adversarial must be a number from 0 to"),
    ]
    for arguments, message in wrong:
        result = invoke("train-vqvae", "--data", "digits", "--out", tmp_path / "x", "--steps", 1, *arguments)
        assert result.exit_code in (1, 2)
        assert message in result.output
        assert not (tmp_path / "x").exists()


def test_a_folder_opens_at_the_model_s_resolution(tmp_path):
    source = open_images(fill(tmp_path / "mixed"), 64)
    assert source.images(np.array([1])).shape == (1, 3, 64, 64)
