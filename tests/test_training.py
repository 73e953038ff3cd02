"""Training: splits, variants and random choices are pure functions of the seed; runs resume to the bit; VAR becomes MVAR."""


import numpy as np
import pytest
import torch
from PIL import Image

from mvar_models import MVAR, VAR, VQVAE, MVARPipeline
from mvar_models.training import commands
from mvar_models.training.data import ClassFolders, Digits, center_crop, open_source, split
from mvar_models.training.randomness import Purpose, batch_members, generator
from mvar_models.training.recipe import TransformerRun, VQVAERun, learning_rate_factor, parameter_groups
from mvar_models.training.tokens import TokenSet, tokenize
from mvar_models.training.transformer_task import TransformerTask

from tiny_models import tiny_mvar, tiny_vqvae


@pytest.fixture(scope="module")
def digits():
    return Digits(32)


def test_split_is_fixed_disjoint_and_balanced(digits):
    train, val = split(digits)
    again = split(Digits(32))
    assert np.array_equal(train, again[0]) and np.array_equal(val, again[1])
    assert sorted([*train, *val]) == list(range(1797)) and 0.2 <= len(val) / 1797 <= 1 / 3
    shares = np.bincount(digits.labels[val]) / np.bincount(digits.labels)
    assert shares.min() > 0.23 and shares.max() < 0.27


def test_digits_are_those_of_scikit_learn(digits):
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = digits.images(np.arange(5))
    assert images.shape == (5, 3, 32, 32) and -1 <= images.min() and images.max() <= 1
    pooled = (images.mean(1).reshape(5, 8, 4, 8, 4).mean((2, 4)) + 1) * 8
    assert np.corrcoef(pooled.numpy().ravel(), raw.images[:5].ravel())[0, 1] > 0.97
    assert digits.class_names[raw.target[3]] == "three"


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
    assert {"start_position", "positions", "scale_embedding.weight", "blocks.0.attention.log_scale", "head.bias"} <= kept
    assert {"class_embedding.weight", "head.weight", "blocks.1.mlp.fc1.weight", "blocks.0.modulation.weight"} <= decayed
    assert decayed | kept == set(names.values())


def tiny_tokens(copies=2):
    rng = np.random.default_rng(0)
    return TokenSet(rng.integers(0, 24, (copies, 30, 21), dtype=np.uint16), np.arange(30) % 3)


def test_tokens_are_the_vqvae_s_codes(digits):
    vqvae = VQVAE.from_pretrained("vae-digits")
    which = np.array([4, 9, 100])
    tokens = tokenize(vqvae, digits, which, copies=3, seed=1)
    assert tokens.codes.dtype == np.uint16 and tokens.codes.shape == (3, 3, 130)
    labels, indices = tokens.batch(np.array([2, 0]))
    assert labels.tolist() == digits.labels[[100, 4]].tolist()
    assert torch.equal(indices, vqvae.encode(digits.images(which[[2, 0]])))
    assert not np.array_equal(tokens.codes[0], tokens.codes[1]) and not np.array_equal(tokens.codes[1], tokens.codes[2])
    assert np.array_equal(tokens.codes, tokenize(vqvae, digits, which, copies=3, seed=1).codes)


def task(model=None, **settings):
    config = TransformerRun(data="digits", out="", batch_size=6, **settings)
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
    keep = task(drop_path=0.5)._path_keep(3)
    assert keep.shape == (2, 2, 6) and set(keep[0].unique().tolist()) == {1.0} and set(keep[1].unique().tolist()) <= {0.0, 2.0}


@pytest.fixture
def pretrained(tmp_path):
    tiny_vqvae_32().save_pretrained(tmp_path / "vae")
    return tmp_path


def tiny_vqvae_32():
    """Fits the digits' 32 px: sides 1, 2, 4 at downsampling 8."""
    from mvar_models import VQVAEConfig

    torch.manual_seed(1)
    config = VQVAEConfig(vocab_size=24, z_channels=4, channels=32, channel_multipliers=(1, 1, 1, 1), blocks_per_level=1, sides=(1, 2, 4))
    return VQVAE(config).eval()


def new_run(folder, out, **settings):
    given = dict(
        data="digits", out=str(folder / out), vqvae=str(folder / "vae"), arch="var", depth=2, width=32, num_heads=2,
        steps=6, batch_size=8, lr=1e-2, save_every=2, drop_path=0.2,
    )  # fmt: skip
    return commands.transformer_run(**{**given, **settings})


def metrics(run, *names):
    return [tuple(line.get(name) for name in names) for line in run.folder.metrics()]


def test_var_then_mvar_through_run_folders(pretrained):
    """The whole road: a VAR from nothing, an MVAR from it, a pipeline from the run's folder."""
    var = new_run(pretrained, "var")
    commands.train_transformer(var)
    assert sorted(path.name for path in var.folder.path.iterdir()) == [
        "best", "checkpoints", "config.yaml", "environment.json", "metrics.jsonl", "model",
    ]  # fmt: skip
    mvar = new_run(pretrained, "mvar", arch="mvar", init=str(var.folder.model), kernel_size=3, dense_scales=2, steps=3)
    result = commands.train_transformer(mvar)
    assert len(result["val_loss_per_scale"]) == 3
    model = MVAR.from_pretrained(mvar.folder.model)
    assert model.config.kernel_size == 3 and model.config.class_names[7] == "seven"
    parent = VAR.from_pretrained(var.folder.model)
    assert not torch.equal(model.head.weight, parent.head.weight)
    assert (model.head.weight - parent.head.weight).abs().max() < 0.2, "fine-tuning should begin at the VAR's weights"
    assert MVARPipeline.from_pretrained(mvar.folder.model)(["seven"], output_type="np").shape == (1, 32, 32, 3)


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
    commands.train_transformer(commands.transformer_run(resume=str(broken.folder.path)))
    assert metrics(straight, "step", "loss", "grad_norm", "val_loss") == metrics(broken, "step", "loss", "grad_norm", "val_loss")
    first, second = (VAR.from_pretrained(run.folder.model).state_dict() for run in (straight, broken))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_nan_loss_stops_with_the_checkpoint_intact(pretrained, monkeypatch):
    run = new_run(pretrained, "run")
    plain = TransformerTask.loss

    def poisoned(self, step):
        loss, figures = plain(self, step)
        return (loss * float("nan") if step == 4 else loss), figures

    monkeypatch.setattr(TransformerTask, "loss", poisoned)
    with pytest.raises(FloatingPointError, match="the loss of step 5 is nan; the checkpoint of step 4 is intact"):
        commands.train_transformer(run)
    assert run.folder.last_step() == 4 and run.folder.metrics()[-1]["step"] == 4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision(pretrained, precision):
    run = new_run(pretrained, "run", precision=precision, steps=2)
    assert np.isfinite(commands.train_transformer(run)["val_loss"])


def test_vqvae_learns_and_resumes(tmp_path):
    """PSNR rises well above that of a grey picture within a few steps, and resuming is exact."""
    settings = dict(data="digits", steps=24, batch_size=8, lr=3e-3, vocab_size=32, z_channels=4, channels=32, save_every=12, validate_every=12)
    straight = commands.vqvae_run(out=str(tmp_path / "straight"), **settings)
    result = commands.train_vqvae(straight)
    source = Digits(32)
    val = source.images(split(source)[1])
    grey = 10 * torch.log10(4 / (val - val.mean()).square().mean())
    assert result["val_psnr"] > grey + 1
    broken = commands.vqvae_run(out=str(tmp_path / "broken"), **settings)

    def interrupt(values):
        if values["step"] == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        commands.train_vqvae(broken, interrupt)
    commands.train_vqvae(commands.vqvae_run(resume=str(tmp_path / "broken")))
    assert metrics(straight, "step", "loss", "val_psnr") == metrics(broken, "step", "loss", "val_psnr")


def test_dead_codes_come_back():
    """Codes that nobody draws are put on residuals of the batch, and codes in use stay where they are."""
    from mvar_models.training.vqvae_task import VQVAETask

    model = tiny_vqvae_32()
    config = VQVAERun(data="digits", out="", vocab_size=24, z_channels=4, sides=(1, 2, 4), steps=1000, batch_size=8)
    source = Digits(32)
    task = VQVAETask(model, source, *split(source), config)
    with torch.no_grad():
        model.quantizer.codebook.weight[12:] += 1000
    far = model.quantizer.codebook.weight.detach().clone()
    for step in range(20, 60):
        task.loss(step)
        task.after_step(step)
    moved = (model.quantizer.codebook.weight - far).abs().amax(1)
    assert (moved[12:] > 900).all()
    features = model.latents(task.batch(99))
    drawn = model.quantizer(features)[3].unique()
    assert (drawn >= 12).any(), "a restarted code should be near data"


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


def test_class_folders(tmp_path):
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (tmp_path / name).mkdir()
        for index, size in enumerate(((40, 30), (16, 16), (100, 70))):
            Image.new("RGB", size, colour).save(tmp_path / name / f"{index}.png")
    source = open_source(tmp_path, 16)
    assert isinstance(source, ClassFolders) and source.class_names == ("blue", "red") and source.flips
    images = source.images(np.arange(6))
    assert images.shape == (6, 3, 16, 16)
    assert torch.equal(images[0, :, 0, 0], torch.tensor([-1.0, -1.0, 1.0])) and torch.equal(images[5, :, 9, 9], torch.tensor([1.0, -1.0, -1.0]))
    (tmp_path / "green").mkdir()
    with pytest.raises(ValueError, match="green has no pictures"):
        open_source(tmp_path, 16)
    (tmp_path / "green" / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"broken\.png cannot be read as a picture"):
        open_source(tmp_path, 16).images(np.array([3]))


@pytest.mark.parametrize("size", [(64, 64), (33, 50), (200, 70), (16, 17)])
def test_center_crop_keeps_the_middle(size):
    picture = Image.new("RGB", size, "black")
    picture.paste("white", (size[0] // 2 - size[0] // 8, 0, size[0] // 2 + size[0] // 8, size[1]))
    cropped = np.array(center_crop(picture, 16)).astype(float).mean((0, 2))
    assert cropped.shape == (16,)
    assert cropped[7:9].min() > 150, "the middle of the picture should stay in the middle"


def test_wrong_runs(tmp_path, pretrained):
    with pytest.raises(FileNotFoundError, match="data must be 'digits' or a folder"):
        open_source("nowhere", 16)
    with pytest.raises(ValueError, match="schedule 'alternating' trains scales apart"):
        TransformerRun(data="digits", out="", arch="var", schedule="alternating")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        TransformerRun(data="digits", out="", batch_size=0)
    new_run(pretrained, "run")
    with pytest.raises(FileExistsError, match="already holds a run; go on with --resume"):
        new_run(pretrained, "run")
    with pytest.raises(FileNotFoundError, match="holds no run"):
        commands.transformer_run(resume=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="is a transformer run, this command trains a vqvae"):
        commands.vqvae_run(resume=str(pretrained / "run"))
