"""From a checkpoint to a trained model: VAR's weights in MVAR, the released figures through the trainer, classes, averages, precisions."""

import copy
import logging

import numpy as np
import pytest
import torch

from mvar_models import MVAR, VAR
from mvar_models.checkpoints.official import official_name
from mvar_models.registry import architecture
from mvar_models.tokens.token_set import TokenSet
from mvar_models.training.build import _windows, build_transformer
from mvar_models.training.ema import WeightAverage
from mvar_models.training.loop import Loop
from mvar_models.training.loss_scale import LossScale
from mvar_models.training.run_folder import RunFolder
from mvar_models.training.runs import start_transformer_run
from mvar_models.training.settings import TransformerSettings
from mvar_models.training.transformer_task import TransformerTask

from golden_weights import Case, case_names
from tiny_models import NAMES, tiny_mvar, tiny_var, tiny_vqvae
from training_cases import new_loop


@pytest.fixture(scope="module", params=case_names())
def golden(request, tmp_path_factory):
    """A run of zero steps: the golden VAR's checkpoint made an MVAR, with its loop and the folder it wrote."""
    case, folder = Case(request.param), tmp_path_factory.mktemp("golden")
    case.var().save_pretrained(folder / "var")
    vqvae, names = case.vqvae(), tuple("abcdefghij")
    config = TransformerSettings(
        data="golden", out=str(folder / "run"), init=str(folder / "var"), vqvae="golden", steps=0, batch_size=len(case.labels), drop_path=0.0,
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


def settings(**given):
    return TransformerSettings(data="", out="", vqvae="tiny", **given)


@pytest.fixture
def saved(tmp_path):
    tiny_var().save_pretrained(tmp_path / "var")
    tiny_mvar().save_pretrained(tmp_path / "mvar")
    return tmp_path


def test_classes_that_fit_are_kept(saved, caplog):
    with caplog.at_level(logging.WARNING):
        model = build_transformer(settings(init=str(saved / "var")), tiny_vqvae(), NAMES)
    assert torch.equal(model.class_embedding.weight, tiny_var().class_embedding.weight)
    assert not [record for record in caplog.records if "class" in record.getMessage()]
    assert "no scale has windows" in caplog.text, "sides of at most 4 are all dense by default"
    assert model.config.class_names == NAMES


def test_image_net_folders_named_by_wordnet_id_keep_the_embeddings(saved):
    names = ("n01440764", "n01443537", "n01484850")
    model = build_transformer(settings(init=str(saved / "var")), tiny_vqvae(), names)
    assert (
        torch.equal(model.class_embedding.weight, tiny_var().class_embedding.weight)
        and model.config.class_names == names
    )


@pytest.mark.parametrize("names", [("ant", "bee", "cow"), ("ant", "bee"), tuple("abcdefg")])
def test_other_classes_start_anew(saved, caplog, names):
    """Drawn from the run's seed, said in the log; the unconditional class and everything else stay."""
    with caplog.at_level(logging.WARNING):
        first, again, other = (
            build_transformer(settings(init=str(saved / "var"), seed=seed), tiny_vqvae(), names)
            for seed in (0, 0, 1)
        )
    assert (
        f"the classes of the data ({len(names)}: " in caplog.text
        and "class embeddings are initialised (seed 0)" in caplog.text
    )
    assert first.config.class_names == names and first.class_embedding.weight.shape[0] == len(names) + 1
    assert torch.equal(first.class_embedding.weight, again.class_embedding.weight)
    assert not torch.equal(first.class_embedding.weight[:-1], other.class_embedding.weight[:-1])
    assert torch.equal(first.class_embedding.weight[-1], tiny_var().class_embedding.weight[-1])
    assert torch.equal(first.head.weight, tiny_var().head.weight)


def test_windows(saved):
    """What is asked for; else as released: 8 of the 256 px scales attend to all of themselves, 6 of the 512 px ones. An MVAR keeps its own."""
    from mvar_models.config import SIDES_256, SIDES_512

    row = architecture("mvar")
    assert _windows(row, settings(), SIDES_256) == {"kernel_size": 7, "dense_scales": 8}
    assert _windows(row, settings(), SIDES_512) == {"kernel_size": 7, "dense_scales": 6}
    model = build_transformer(
        settings(init=str(saved / "var"), kernel_size=3, dense_scales=1), tiny_vqvae(), NAMES
    )
    assert (model.config.kernel_size, model.config.dense_scales) == (3, 1)
    model = build_transformer(settings(init=str(saved / "mvar")), tiny_vqvae(), NAMES)
    assert (model.config.kernel_size, model.config.dense_scales) == (3, 2) and torch.equal(
        model.head.weight, tiny_mvar().head.weight
    )
    with pytest.raises(ValueError, match="is an MVAR with kernel_size 3, not 5; leave kernel_size out"):
        build_transformer(settings(init=str(saved / "mvar"), kernel_size=5), tiny_vqvae(), NAMES)
    with pytest.raises(ValueError, match="is a vqvae model"):
        tiny_vqvae().save_pretrained(saved / "vae")
        build_transformer(settings(init=str(saved / "vae")), tiny_vqvae(), NAMES)
    assert isinstance(
        build_transformer(settings(init=str(saved / "var"), arch="var"), tiny_vqvae(), NAMES), VAR
    )


def test_average_of_weights(seed):
    """The closed form of three updates; applied and taken back without a trace."""
    model = torch.nn.Linear(3, 2)
    average, history, decay = (
        WeightAverage(model, 0.5),
        [copy.deepcopy(model.weight.data)],
        [2 / 11, 3 / 12, 4 / 13],
    )
    for step in range(3):
        with torch.no_grad():
            model.weight.normal_()
        history.append(model.weight.detach().clone())
        average.update(step + 1)
    expected = history[0]
    for weight, d in zip(history[1:], decay):
        expected = d * expected + (1 - d) * weight
    with average.applied():
        assert torch.allclose(model.weight, expected, atol=1e-6)
    assert torch.equal(model.weight, history[-1]) and torch.allclose(
        average.average["weight"], expected, atol=1e-6
    )
    late = WeightAverage(model, 0.5)
    late.average["weight"].zero_()
    late.update(1000)
    assert torch.allclose(late.average["weight"], model.weight / 2), "the decay is the asked one in the end"


def test_loss_scale():
    scale = LossScale(enabled=True)
    scale.overflowed()
    assert scale.factor == 2.0**15 and scale.skipped_steps == 1
    for _ in range(2000):
        scale.stepped()
    assert scale.factor == 2.0**16
    again = LossScale(enabled=True)
    again.load_state_dict(scale.state_dict())
    assert vars(again) == vars(scale)
    with pytest.raises(FloatingPointError, match="overflow even when the loss is scaled down"):
        for _ in range(99):
            scale.overflowed()
    off = LossScale(enabled=False)
    for _ in range(5000):
        off.stepped()
    assert off.factor == 1.0


def test_overflowing_steps_are_skipped_and_counted(tmp_path, monkeypatch):
    """Neither weights nor moments of a skipped step change, and the scale is halved."""
    loop = new_loop(tmp_path / "run", precision="fp16")
    loop.step(0)
    skipped = loop.loss_scale.skipped_steps
    before = copy.deepcopy(loop.task.model.state_dict())
    plain = Loop.gradients

    def overflow(self, index):
        result = plain(self, index)
        next(self.task.model.parameters()).grad[0] = float("inf")
        return result

    monkeypatch.setattr(Loop, "gradients", overflow)
    factor = loop.loss_scale.factor
    values, _ = loop.step(1)
    assert (
        values["skipped_steps"] == skipped + 1
        and values["loss_scale"] == factor / 2
        and values["grad_norm"] is None
    )
    assert all(torch.equal(before[name], value) for name, value in loop.task.model.state_dict().items())


def test_clipping_and_the_unscaled_step(tmp_path):
    """The step is AdamW's on gradients of norm 2, whatever the precision's factor."""
    loop = new_loop(tmp_path / "run", weight_decay=0.0)
    loop.settings = loop.settings.from_dict({**loop.settings.to_dict(), "clip": 1e-3})
    loop.step(0)
    norm = torch.stack([parameter.grad.norm() for parameter in loop.task.model.parameters()]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-4)


def test_micro_batches_change_nothing(tmp_path):
    runs = [
        new_loop(tmp_path / str(accumulate), accumulate=accumulate, batch_size=7) for accumulate in (1, 3)
    ]
    for loop in runs:
        loop.fit()
    first, second = ([line["loss"] for line in loop.folder.metrics() if "loss" in line] for loop in runs)
    assert second == pytest.approx(first, rel=1e-5)


def test_compiled_blocks_train_alike(tmp_path, monkeypatch):
    """torch.compile of each block, here without code generation, gives the same losses and names in checkpoints."""
    plain_compile = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, *a, **k: plain_compile(self, *a, backend="aot_eager", **k)
    )
    torch._dynamo.reset()
    runs = [new_loop(tmp_path / str(compiled), compile=compiled, steps=3) for compiled in (False, True)]
    for loop in runs:
        loop.fit()
    assert runs[1].task.model.blocks[0]._compiled_call_impl is not None
    first, second = ([line["loss"] for line in loop.folder.metrics() if "loss" in line] for loop in runs)
    assert second == pytest.approx(first, rel=1e-5)
    assert (
        torch.nn.Module.state_dict(MVAR.from_pretrained(runs[1].folder.model)).keys()
        == tiny_mvar().state_dict().keys()
    )


def test_activation_checkpointing_trains_alike(tmp_path):
    runs = [new_loop(tmp_path / str(on), activation_checkpointing=on) for on in (False, True)]
    assert runs[1].task.model.gradient_checkpointing and not runs[0].task.model.gradient_checkpointing
    for loop in runs:
        loop.fit()
    first, second = ([line["loss"] for line in loop.folder.metrics() if "loss" in line] for loop in runs)
    assert second == pytest.approx(first, rel=1e-6)


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
                out=str(tmp_path / f"run-{name}"), steps=1,
            )  # fmt: skip
        warned[name] = [record.args for record in caplog.records]
    assert warned["same"] == []
    assert warned["other"] == [
        (str(tmp_path / "var"), str(tmp_path / "var" / "vqvae"), str(tmp_path / "other"))
    ]
