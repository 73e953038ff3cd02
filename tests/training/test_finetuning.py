"""The golden VAR becomes the golden MVAR in the trainer, with its loss and gradients."""

import logging

import numpy as np
import pytest
import torch

from mvar_models import MVAR
from mvar_models.checkpoints.official import official_name
from mvar_models.tokens.token_set import TokenSet
from mvar_models.training.build import build_transformer
from mvar_models.training.loop import Loop
from mvar_models.training.run_folder import RunFolder
from mvar_models.training.runs import start_transformer_run
from mvar_models.training.settings import TransformerSettings
from mvar_models.training.transformer_task import TransformerTask

from golden_weights import Case, case_names
from tiny_models import tiny_var, tiny_vqvae


@pytest.fixture(scope="module", params=case_names())
def golden(request, tmp_path_factory):
    """A run of zero steps that makes the golden VAR an MVAR: the case, and the loop with its folder."""
    case, folder = Case(request.param), tmp_path_factory.mktemp("golden")
    case.var().save_pretrained(folder / "var")
    vqvae, names = case.vqvae(), tuple("abcdefghij")
    config = TransformerSettings(
        data="golden", out=str(folder / "run"), init=str(folder / "var"), vqvae="golden",
        steps=0, batch_size=len(case.labels), drop_path=0.0,
        label_drop=0.0, kernel_size=case.config["kernel_size"], dense_scales=case.config["refine_step"],
    )  # fmt: skip
    tokens = TokenSet(case.tensors["vae.indices"][None].numpy().astype(np.uint16), case.labels.numpy())
    loop = Loop(
        TransformerTask(build_transformer(config, vqvae, names), vqvae, tokens, tokens, config),
        config,
        RunFolder.create(config),
    )
    loop.fit()
    return case, loop


def test_zero_steps_from_var_are_the_golden_mvar(golden):
    case, loop = golden
    model, indices = MVAR.from_pretrained(loop.folder.model), case.tensors["vae.indices"].long()
    with torch.no_grad():
        logits = model(case.labels, loop.task.vqvae.quantizer.scale_inputs(indices))[:, :: case.stride]
    expected = case.tensors["mvar.logits"]
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_golden_loss_and_gradients_through_the_trainer(golden, accumulate):
    case, made = golden
    config = made.settings.from_dict({**made.settings.to_dict(), "accumulate": accumulate})
    task = made.task
    loop = Loop(TransformerTask(task.model, task.vqvae, task.train, task.val, config), config, made.folder)
    loss, _ = loop.gradients(0)
    expected = case.figures["mvar_loss"]
    assert abs(loss - expected) <= 1e-5 * expected
    norms = case.figures["mvar_grad_norm"]
    for ours, parameter in task.model.named_parameters():
        name = official_name(ours, task.model.config)
        if name not in case.figures["mvar_no_grad"]:
            norm = parameter.grad.norm().item()
            assert abs(norm - norms[name]) <= 1e-3 * norms[name] + 1e-7, (
                f"{name}: gradient norm {norm}, expected {norms[name]}"
            )


def test_only_another_vqvae_is_warned_of(tmp_path, caplog):
    """The same VQVAE in two folders gives the same codes; one with other weights does not."""
    other = tiny_vqvae()
    with torch.no_grad():
        other.quantizer.codebook.weight[0, 0] += 1
    tiny_vqvae().save_pretrained(tmp_path / "var" / "vqvae")
    tiny_vqvae().save_pretrained(tmp_path / "same")
    other.save_pretrained(tmp_path / "other")
    tiny_var().save_pretrained(tmp_path / "var")
    warned = {}
    for name in ("same", "other"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            start_transformer_run(
                data="digits", arch="var", init=str(tmp_path / "var"), vqvae=str(tmp_path / name),
                out=str(tmp_path / f"run-{name}"), steps=1, accept_psnr=True,
            )  # fmt: skip
        warned[name] = [record.args for record in caplog.records]
    assert warned["same"] == []
    assert warned["other"] == [
        (str(tmp_path / "var"), str(tmp_path / "var" / "vqvae"), str(tmp_path / "other"))
    ]
