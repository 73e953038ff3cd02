"""Training: splits, variants and random choices are pure functions of the seed; runs resume to the bit; VAR becomes MVAR."""

import numpy as np
import pytest
import torch

from mvar_models import MVAR, VAR, VQVAE, MVARPipeline
from mvar_models.data.open import open_images
from mvar_models.randomness import Purpose, batch_members, generator
from mvar_models.tokens.token_set import TokenSet
from mvar_models.training import runs as commands
from mvar_models.training.optimizer import learning_rate_factor, parameter_groups
from mvar_models.training.settings import TransformerSettings
from mvar_models.training.transformer_task import TransformerTask

from tiny_models import tiny_mvar, tiny_vqvae


@pytest.mark.parametrize("size, batch", [(10, 4), (7, 7), (3, 8)])
def test_every_epoch_sees_every_example_once(size, batch):
    drawn = np.concatenate([batch_members(5, step, batch, size) for step in range(3 * size)])
    for epoch in range(len(drawn) // size):
        assert sorted(drawn[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert not np.array_equal(drawn[:size], drawn[size : 2 * size]) or size < 4


def test_streams_are_independent_of_each_other():
    draws = {tuple(generator(s, p, t).integers(0, 2**31, 4)) for s in (0, 1) for p in Purpose for t in (0, 1)}
    assert len(draws) == 4 * len(Purpose)


def test_learning_rate():
    factors = [learning_rate_factor(step, 1000) for step in range(1000)]
    assert factors[0] == pytest.approx(0.005) and max(factors) == 1.0 and factors[-1] == pytest.approx(0.1)
    assert factors[20] == factors[60] == 1.0 and factors[80] < 1
    assert all(0 < learning_rate_factor(0, steps) <= 1 for steps in (1, 2, 3))


def test_what_is_not_decayed():
    model = tiny_mvar()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, kept = ({names[id(p)] for p in group["params"]} for group in parameter_groups(model, 0.05))
    assert {
        "start_position",
        "positions",
        "scale_embedding.weight",
        "blocks.0.attention.log_scale",
        "head.bias",
    } <= kept
    assert {
        "class_embedding.weight",
        "head.weight",
        "blocks.1.mlp.fc1.weight",
        "blocks.0.modulation.weight",
    } <= decayed
    assert decayed | kept == set(names.values())


def tiny_tokens(copies=2):
    rng = np.random.default_rng(0)
    return TokenSet(rng.integers(0, 24, (copies, 30, 21), dtype=np.uint16), np.arange(30) % 3)


def task(model=None, **settings):
    config = TransformerSettings(data="digits", out="", batch_size=6, **settings)
    return TransformerTask(model or tiny_mvar(), tiny_vqvae(), tiny_tokens(), tiny_tokens(1), config)


def test_alternating_schedule_is_the_released_one():
    """Out of every 8 + local scales iterations 8 train the dense scales together and one trains each local scale."""
    chosen = [task(schedule="alternating").scales_of_step(step) for step in range(18)]
    assert chosen == ([range(0, 2)] * 8 + [range(2, 3)]) * 2
    assert task().scales_of_step(3) is None


def test_scales_losses_add_up():
    """The losses of parts of the pyramid sum to the loss of all of it."""
    model, vqvae, tokens = tiny_mvar(), tiny_vqvae(), tiny_tokens()
    labels, indices = tokens.batch(np.arange(6))
    inputs = vqvae.quantizer.scale_inputs(indices).detach()
    whole = model.loss(labels, inputs, indices)
    parts = [model.loss(labels, inputs, indices, scales=scales) for scales in (range(0, 2), range(2, 3))]
    assert torch.allclose(whole, sum(parts), rtol=1e-5)
    with torch.no_grad():
        logits = model(labels, inputs)
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), indices.flatten())
    assert torch.allclose(whole, plain, rtol=1e-5)


def test_label_drop_and_drop_path():
    def first_loss(**settings):
        return task(**settings).loss(0)[0].item()

    plain = first_loss(label_drop=0.0, drop_path=0.0)
    assert first_loss(label_drop=0.0, drop_path=0.0) == plain
    assert first_loss(label_drop=0.9, drop_path=0.0) != plain
    assert first_loss(label_drop=0.0, drop_path=0.5) != plain
    keep = task(drop_path=0.5).path_keep(3)
    assert (
        keep.shape == (2, 2, 6)
        and set(keep[0].unique().tolist()) == {1.0}
        and set(keep[1].unique().tolist()) <= {0.0, 2.0}
    )


@pytest.fixture
def pretrained(tmp_path):
    tiny_vqvae_32().save_pretrained(tmp_path / "vae")
    return tmp_path


def tiny_vqvae_32():
    """Fits the digits' 32 px: sides 1, 2, 4 at downsampling 8."""
    from mvar_models import VQVAEConfig

    torch.manual_seed(1)
    config = VQVAEConfig(
        vocab_size=24,
        z_channels=4,
        channels=32,
        channel_multipliers=(1, 1, 1, 1),
        blocks_per_level=1,
        sides=(1, 2, 4),
    )
    return VQVAE(config).eval()


def new_run(folder, out, **settings):
    given = dict(
        data="digits", out=str(folder / out), vqvae=str(folder / "vae"), arch="var", depth=2, width=32, num_heads=2,
        steps=6, batch_size=8, lr=1e-2, save_every=2, drop_path=0.2,
    )  # fmt: skip
    return commands.start_transformer_run(**{**given, **settings})


def metrics(run, *names):
    return [tuple(line.get(name) for name in names) for line in run.folder.metrics()]


def test_var_then_mvar_through_run_folders(pretrained):
    """The whole road: a VAR from nothing, an MVAR from it, a pipeline from the run's folder."""
    var = new_run(pretrained, "var")
    commands.train_transformer(var)
    assert sorted(path.name for path in var.folder.path.iterdir()) == [
        "best", "checkpoints", "config.yaml", "environment.json", "metrics.jsonl", "model",
    ]  # fmt: skip
    mvar = new_run(
        pretrained, "mvar", arch="mvar", init=str(var.folder.model), kernel_size=3, dense_scales=2, steps=3
    )
    result = commands.train_transformer(mvar)
    assert len(result["val_loss_per_scale"]) == 3
    model = MVAR.from_pretrained(mvar.folder.model)
    assert model.config.kernel_size == 3 and model.config.class_names[7] == "seven"
    parent = VAR.from_pretrained(var.folder.model)
    assert not torch.equal(model.head.weight, parent.head.weight)
    assert (model.head.weight - parent.head.weight).abs().max() < 0.2, (
        "fine-tuning should begin at the VAR's weights"
    )
    assert MVARPipeline.from_pretrained(mvar.folder.model)(["seven"], output_type="np").shape == (
        1,
        32,
        32,
        3,
    )


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(pretrained):
    straight = new_run(pretrained, "straight", keep=9)
    commands.train_transformer(straight)
    broken = new_run(pretrained, "broken")

    def interrupt(values):
        if values["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        commands.train_transformer(broken, interrupt)
    (broken.folder.checkpoints / ".writing-000099").mkdir()
    with broken.folder.metrics_file.open("a") as file:
        file.write('{"step": 99, "lo')
    commands.train_transformer(commands.start_transformer_run(resume=str(broken.folder.path)))
    assert metrics(straight, "step", "loss", "grad_norm", "val_loss") == metrics(
        broken, "step", "loss", "grad_norm", "val_loss"
    )
    first, second = (VAR.from_pretrained(run.folder.model).state_dict() for run in (straight, broken))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_nan_loss_stops_with_the_checkpoint_intact(pretrained, monkeypatch):
    run = new_run(pretrained, "run")
    plain = TransformerTask.loss

    def poisoned(self, step):
        loss, figures = plain(self, step)
        return (loss * float("nan") if step == 4 else loss), figures

    monkeypatch.setattr(TransformerTask, "loss", poisoned)
    with pytest.raises(
        FloatingPointError, match="the loss of step 5 is nan; the checkpoint of step 4 is intact"
    ):
        commands.train_transformer(run)
    assert run.folder.last_step() == 4 and run.folder.metrics()[-1]["step"] == 4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision(pretrained, precision):
    run = new_run(pretrained, "run", precision=precision, steps=2)
    assert np.isfinite(commands.train_transformer(run)["val_loss"])


def test_wrong_runs(tmp_path, pretrained):
    with pytest.raises(FileNotFoundError, match="data must be 'digits' or a folder"):
        open_images("nowhere", 16)
    with pytest.raises(ValueError, match="schedule 'alternating' trains scales apart"):
        TransformerSettings(data="digits", out="", arch="var", schedule="alternating")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        TransformerSettings(data="digits", out="", batch_size=0)
    run = new_run(pretrained, "run")
    new_run(
        pretrained, "run"
    )  # nothing has begun: whatever was wrong with the first command does not stand in the second one's way
    run.folder.log({"step": 1})
    with pytest.raises(FileExistsError, match="already holds a run; continue with --resume"):
        new_run(pretrained, "run")
    with pytest.raises(FileNotFoundError, match="holds no run"):
        commands.start_transformer_run(resume=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="is a transformer run, this command trains a vqvae"):
        commands.start_vqvae_run(resume=str(pretrained / "run"))
