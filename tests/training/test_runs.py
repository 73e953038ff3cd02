"""From settings to a finished run: VAR becomes MVAR, resumed runs have the same bits."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mvar_models import MVAR, VAR, VQVAE, MVARPipeline
from mvar_models.data.folders import ClassFolders
from mvar_models.data.open import open_images
from mvar_models.files import FolderInUse
from mvar_models.tokens.folder import TokenFolder
from mvar_models.training import runs
from mvar_models.training.transformer_task import TransformerTask

from run_cases import invoke, make_data
from tiny_models import tiny_var
from token_folders import write


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
        data="digits", out=str(folder / out), vqvae=str(folder / "vae"),
        arch="var", depth=2, width=32, num_heads=2,
        steps=6, batch_size=8, lr=1e-2, save_every=2, drop_path=0.2, accept_psnr=True,
    )  # fmt: skip
    return runs.start_transformer_run(**{**given, **settings})


def metrics(run, *names):
    return [tuple(line.get(name) for name in names) for line in run.folder.metrics()]


def test_var_then_mvar_through_run_folders(pretrained):
    """A VAR from scratch, an MVAR from it, a pipeline from the run's folder."""
    var = new_run(pretrained, "var")
    runs.train_transformer(var)
    assert sorted(path.name for path in var.folder.path.iterdir()) == [
        "best", "checkpoints", "config.yaml", "environment.json", "metrics.jsonl", "model",
        "reconstruction.png",
    ]  # fmt: skip
    mvar = new_run(
        pretrained,
        "mvar",
        arch="mvar",
        init=str(var.folder.model),
        kernel_size=3,
        dense_scales=2,
        steps=3,
        lr=1e-5,
    )
    result = runs.train_transformer(mvar)
    assert len(result["val_loss_per_scale"]) == 3
    model = MVAR.from_pretrained(mvar.folder.model)
    assert model.config.kernel_size == 3
    assert model.config.class_names[7] == "seven"
    parent = VAR.from_pretrained(var.folder.model)
    assert not torch.equal(model.head.weight, parent.head.weight)
    # A step of AdamW moves a weight by about lr.
    for name, weight in parent.state_dict().items():
        moved = (model.state_dict()[name] - weight).abs().max()
        assert moved < 1e-4, f"fine-tuning should begin at the VAR's weights, {name} moved by {moved}"
    assert MVARPipeline.from_pretrained(mvar.folder.model)(["seven"], output_type="np").images.shape == (
        1,
        32,
        32,
        3,
    )


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(pretrained):
    straight = new_run(pretrained, "straight", keep=9)
    runs.train_transformer(straight)
    broken = new_run(pretrained, "broken")

    def interrupt(values):
        if values["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.train_transformer(broken, interrupt)
    (broken.folder.checkpoints / ".writing-000099").mkdir()
    with broken.folder.metrics_file.open("a") as file:
        file.write('{"step": 99, "lo')
    runs.train_transformer(runs.start_transformer_run(resume=str(broken.folder.path)))
    assert metrics(straight, "step", "loss", "grad_norm", "val_loss") == metrics(
        broken, "step", "loss", "grad_norm", "val_loss"
    )
    first, second = (VAR.from_pretrained(run.folder.model).state_dict() for run in (straight, broken))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_nan_loss_stops_with_the_checkpoint_intact(pretrained, monkeypatch):
    run = new_run(pretrained, "run")
    plain = TransformerTask.loss

    def poisoned(self, step, rows):
        loss, figures = plain(self, step, rows)
        return (loss * float("nan") if step == 4 else loss), figures

    monkeypatch.setattr(TransformerTask, "loss", poisoned)
    with pytest.raises(FloatingPointError, match=r"loss of step 5 is nan; .*step 4 is intact"):
        runs.train_transformer(run)
    assert run.folder.last_step() == 4
    assert run.folder.metrics()[-1]["step"] == 4


def test_wrong_runs(tmp_path, pretrained):
    with pytest.raises(FileNotFoundError, match="data must be 'digits' or a folder"):
        open_images("nowhere", 16)
    run = new_run(pretrained, "run")
    new_run(pretrained, "run")  # no step was taken, so the folder may be reused
    run.folder.log({"step": 1})
    with pytest.raises(FileExistsError, match=r"already holds a run; .*--resume"):
        new_run(pretrained, "run", steps=7)
    with pytest.raises(FileNotFoundError, match=r"holds no run: .*config.yaml"):
        runs.start_transformer_run(resume=str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"transformer run.*vqvae"):
        runs.start_vqvae_run(resume=str(pretrained / "run"))


@pytest.mark.parametrize("again", ["the same command", "--resume", "another command"])
def test_a_second_trainer_is_kept_out(pretrained, again):
    """While a run is trained nobody else begins or resumes in its folder; afterwards all can."""
    run, said = new_run(pretrained, "run"), []

    def second():
        if again == "--resume":
            return runs.start_transformer_run(resume=str(run.folder.path))
        return new_run(pretrained, "run", **({} if again == "the same command" else {"steps": 7}))

    def report(values):
        with pytest.raises(FolderInUse, match=rf"is in use: process {os.getpid()} on .* trains there"):
            second()
        said.append(values["step"])
        assert len(list(run.folder.metrics())) >= values["step"], "it can be read all the same"

    runs.train_transformer(run, report)
    assert said == [1, 2, 3, 4, 5, 6]
    if again == "--resume":
        runs.train_transformer(second())
    else:
        with pytest.raises(FileExistsError, match="already holds a run"):
            second()


def test_of_two_starts_in_one_folder_the_one_that_wrote_its_settings_trains(pretrained):
    first, second = new_run(pretrained, "run"), new_run(pretrained, "run", steps=7)
    with pytest.raises(ValueError, match="has other settings by now; choose another --out"):
        runs.train_transformer(first)
    assert not first.folder.metrics()
    runs.train_transformer(second)


STARTS = {
    "transformer": (runs.start_transformer_run, {"init": "var-digits"}),
    "vqvae": (runs.start_vqvae_run, {}),
}


@pytest.mark.parametrize("kind", STARTS)
def test_paths_numpy_s_numbers_and_devices_start_a_run(tmp_path, kind):
    """As programs have them at hand; config.yaml gives them back as plain values."""
    start, options = STARTS[kind]
    given = dict(
        data=np.str_("digits"), out=tmp_path / "run", steps=np.int64(1), batch_size=np.uint8(4),
        lr=np.float64(1e-3),
        ema=np.float32(0.5), fsdp=np.bool_(False), betas=np.array([0.8, 0.9]), device=torch.device("cpu"),
        **{name: Path(value) for name, value in options.items()},
    )  # fmt: skip
    run = start(**given)
    again = start(resume=tmp_path / "run", device=None if run.settings.device == "cpu" else "cpu")
    assert again.settings == run.settings
    assert (run.settings.lr, run.settings.betas, run.settings.batch_size) == (1e-3, (0.8, 0.9), 4)


@pytest.mark.parametrize("kind", STARTS)
@pytest.mark.parametrize(
    "name, value",
    [
        *((name, value) for name in ("epochs", "lr") for value in (math.nan, math.inf, "two", -1, [1])),
        *(("seed", value) for value in (-1, 1 << 64, 0.5)),
        *((name, math.nan) for name in ("weight_decay", "clip", "ema", "batch_size", "accumulate", "keep")),
        ("clip", math.inf), ("batch_size", "four"), ("accumulate", 9), ("data", None), ("data", 3),
        ("fsdp", "no"), ("learning_rate", 1e-3), ("device", "gpu7"), ("betas", 0.9), ("init", 3),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named_in_one_line_and_leave_no_folder(tmp_path, kind, name, value):
    start, options = STARTS[kind]
    length = {} if name == "epochs" else {"steps": 1}
    given = {"data": "digits", "out": tmp_path / "run", "batch_size": 8, **length, **options, name: value}
    with pytest.raises((TypeError, ValueError), match=f"(?s)^(?!.*\n).*{name}"):
        start(**given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", STARTS)
def test_a_resumed_run_takes_no_settings_and_a_new_one_needs_its_own(tmp_path, kind):
    start, options = STARTS[kind]
    start(data="digits", out=tmp_path, steps=1, **options)
    with pytest.raises(ValueError, match="leave out epochs, lr"):
        start(resume=tmp_path, epochs=3, lr=1e-3)
    with pytest.raises(ValueError, match="one of steps and epochs"):
        start(data="digits", out=tmp_path / "other", steps=1, epochs=1)
    with pytest.raises(TypeError, match="'data' and 'out'"):
        start(steps=1)
    with pytest.raises(ValueError, match="resume: must be text, got 3"):
        start(resume=3)


@pytest.fixture
def openings(monkeypatch):
    """The places that were opened as images or as codes, in order."""
    places = []
    for kind in (ClassFolders, TokenFolder):
        begin = kind.__init__

        def counted(self, folder, *more, begin=begin):
            places.append(str(folder))
            begin(self, folder, *more)

        monkeypatch.setattr(kind, "__init__", counted)
    return places


@pytest.mark.parametrize("length", [["--epochs", "0.25"], ["--steps", "2"]], ids=["epochs", "steps"])
@pytest.mark.parametrize(
    "command", ["train", "finetune", "train-vqvae", "train on codes", "finetune on codes"]
)
def test_data_is_opened_once_per_run(tmp_path, openings, command, length):
    """One scan of ImageNet takes minutes; --resume opens the data once as well."""
    make_data(tmp_path)
    tiny_var().save_pretrained(tmp_path / "var")
    data = tmp_path / "data"
    if command.endswith("on codes"):
        write(open_images(data, 16), tmp_path / "codes")
        data = tmp_path / "codes"
    openings.clear()
    options = {
        "train": ["--depth", "1", "--width", "32", "--num-heads", "2", "--vqvae", tmp_path / "vae"],
        "finetune": ["--model", tmp_path / "var", "--vqvae", tmp_path / "vae", "--evaluate-every", "1",
                     "--evaluate-features", "pixels"],
        "train-vqvae": ["--sides", "1,2,4", "--channel-multipliers", "1,1,1", "--perceptual", "0"],
    }  # fmt: skip
    name, run = command.split()[0], tmp_path / "run"
    invoke(name, "--data", data, "--out", run, "--batch-size", "4", *length, *options[name])
    assert openings.count(str(data)) == 1
    invoke(name, "--resume", run)
    assert openings.count(str(data)) == 2
