"""Options made from settings, and the options that commands share."""

import dataclasses

import click
import pytest

from mvar_models import MVAR
from mvar_models.cli import training
from mvar_models.cli.common import INTERNAL, flag_of, settings_options
from mvar_models.cli.edit import edit
from mvar_models.cli.sample import sample
from mvar_models.sampling.sampler import SAMPLERS
from mvar_models.sampling.settings import SamplingSettings
from mvar_models.training.run_folder import RunFolder
from mvar_models.training.settings import RunSettings, TransformerSettings, VQVAESettings, setting

from command_cases import mvar
from run_cases import make_data

COMMANDS = {"train": TransformerSettings, "finetune": TransformerSettings, "train_vqvae": VQVAESettings}


@dataclasses.dataclass(frozen=True)
class Toy(RunSettings):
    """Settings with a field of every type."""

    count: int | None = setting(None, "How many.", shown="all")
    rate: float = setting(0.25, "How fast.")
    sides: tuple[int, ...] = setting((1, 2), "How large.")
    shape: str = setting("round", "Which.", choices=lambda: ["round", "square"])
    loud: bool = setting(False, "Whether.")
    start: str = setting("here", "From where.", flag="--from")


@pytest.fixture
def toy():
    @click.command()
    @settings_options(Toy)
    def command(**options):
        raise RuntimeError("only parsed")

    return command


@pytest.fixture(params=COMMANDS)
def command(request):
    """A training command, its settings class, and the fields it has no option for."""
    return getattr(training, request.param), COMMANDS[request.param], training.WITHOUT[request.param]


def values(command, *arguments):
    given = command.make_context("toy", list(arguments)).params
    return {name: value for name, value in given.items() if value is not None}


def test_every_option_takes_its_default_as_text(command):
    """A type that click cannot call, such as one of a range or None, fails only when the option is given."""
    command, kind, _ = command
    by_name = {option.name: option for option in command.params}
    for field in dataclasses.fields(kind):
        option, default = by_name.get(field.name), field.default
        if option is None or isinstance(default, bool) or default is dataclasses.MISSING:
            continue
        text = (
            "1"
            if default is None
            else ",".join(map(str, default))
            if isinstance(default, tuple)
            else str(default)
        )
        if isinstance(option.type, click.Choice):
            text = option.type.choices[0]
        assert values(command, option.opts[0], text), field.name


def test_every_setting_is_an_option_or_has_a_reason_not_to_be(command):
    command, kind, without = command
    fields = {field.name for field in dataclasses.fields(kind)}
    options = {option.name for option in command.params}
    assert fields - set(INTERNAL) - set(without) == options & fields
    assert options - fields <= {"resume", "epochs", "resolution", "collective_timeout"}
    assert set(without) <= fields, "a field that is gone is still listed"


def test_nothing_is_internal_that_is_no_setting():
    kinds = (*COMMANDS.values(), SamplingSettings)
    fields = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert set(INTERNAL) <= fields


@pytest.mark.parametrize("kind", [TransformerSettings, VQVAESettings])
def test_every_setting_says_what_it_is(kind):
    for field in dataclasses.fields(kind):
        assert field.metadata["help"].endswith("."), field.name


def test_a_plain_default_is_shown(command):
    command, kind, _ = command
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for option in command.params:
        field = fields.get(option.name)
        if field is None or field.metadata.get("shown") is not None or isinstance(field.default, bool):
            continue
        if field.default is None or field.default is dataclasses.MISSING:
            assert "Default" not in option.help, option.name
            continue
        shown = option.help.rpartition("Default: ")[2].rstrip(".")
        if isinstance(field.default, tuple):
            assert tuple(map(int, shown.split(","))) == field.default, option.name
        else:
            assert type(field.default)(shown) == field.default, option.name


def test_values_have_the_types_of_their_fields(toy):
    arguments = [
        "--count",
        "3",
        "--rate",
        "1e-3",
        "--sides",
        "4,5",
        "--shape",
        "square",
        "--loud",
        "--from",
        "x",
    ]
    assert values(toy, *arguments) == {
        "count": 3,
        "rate": 1e-3,
        "sides": (4, 5),
        "shape": "square",
        "loud": True,
        "start": "x",
    }
    assert values(toy, "--no-loud") == {"loud": False}


def test_what_is_not_given_is_none(toy):
    assert values(toy) == {}


def test_defaults_in_words(toy):
    texts = {option.name: option.help for option in toy.params}
    assert texts["count"] == "How many. Default: all."
    assert texts["rate"] == "How fast. Default: 0.25."
    assert texts["sides"] == "How large. Default: 1,2."
    assert texts["loud"] == "Whether."


@pytest.mark.parametrize(
    "flag, value, message",
    [("--shape", "oval", "square"), ("--sides", "1,b", "1,b"), ("--count", "few", "few")],
)
def test_a_wrong_value_is_refused_by_its_flag(toy, flag, value, message):
    with pytest.raises(click.BadParameter) as refused:
        values(toy, flag, value)
    assert flag in refused.value.format_message()
    assert message in refused.value.format_message()


def test_flags():
    assert flag_of("init", TransformerSettings) == "--model"
    assert flag_of("batch_size", TransformerSettings) == "--batch-size"
    assert flag_of("epochs", VQVAESettings) == "--epochs"


def test_train_vqvae_and_resume(tmp_path):
    """What it says to run next can be pasted: the folder has a space in its name."""
    out = tmp_path / "my vae"
    shape = "--channels 32 --vocab-size 16 --z-channels 4 --sides 1,2,8"
    result = mvar(f"train-vqvae --data digits --steps 2 --batch-size 4 {shape} --out", out)
    assert result.exit_code == 0, result.output
    assert "PSNR" in result.output
    assert str(out / "model") in result.output
    assert (out / "model" / "model.safetensors").is_file()
    again = mvar("train-vqvae --resume", out)
    assert again.exit_code == 0, again.output
    assert "is finished: it has its 2 steps" in again.output
    assert (
        f"mvar train --data digits --vqvae '{out}', or mvar train-vqvae --resume '{out}' --steps 4"
        in again.output
    )
    assert "1,797 images in 10 classes: zero, one, two, ..." in again.output
    fewer = mvar("train-vqvae --steps 1 --resume", out)
    assert fewer.exit_code == 1 and "steps must be at least the 2 of" in fewer.output
    further = mvar("train-vqvae --steps 3 --resume", out)
    assert further.exit_code == 0, further.output
    folder = RunFolder(out)
    assert folder.read_settings().steps == folder.last_step() == 3
    assert [line["step"] for line in folder.metrics() if "loss" in line] == [1, 2, 3]


def test_the_settings_of_a_run_are_those_of_its_model(tmp_path):
    """Whatever was not given is what the checkpoint has, or follows from what was given."""
    for out, command in {
        "tuned": "finetune --model var-digits --kernel-size 3",
        "new": "train --depth 2 --dense-scales 2",
    }.items():
        result = mvar(f"{command} --data digits --steps 1 --batch-size 4 --out", tmp_path / out)
        assert result.exit_code == 0, result.output
        settings = RunFolder(tmp_path / out).read_settings()
        config = MVAR.from_pretrained(tmp_path / out).config
        for name in ("depth", "width", "num_heads", "kernel_size", "dense_scales", "previous_scales"):
            assert getattr(settings, name) == getattr(config, name), (out, name)


def test_a_vqvae_of_another_size_is_refused_before_images_are_encoded(tmp_path):
    data, out = make_data(tmp_path), tmp_path / "run"
    options = ["--data", data / "data", "--vqvae", data / "vae", "--out", out]
    result = mvar("finetune --model var-digits --steps 1", *options)
    assert result.exit_code == 1
    assert "var-digits: sides differs" in result.output
    assert not (out / "tokens").exists()


SHARED = {
    "model",
    "vqvae",
    "arch",
    "dtype",
    "device",
    "guidance_scale",
    "guidance_schedule",
    "top_k",
    "top_p",
    "sampler",
    "preset",
}


@pytest.mark.parametrize("command", [sample, edit])
def test_shared_options(command):
    options = {parameter.name: parameter for parameter in command.params}
    assert SHARED <= set(options)
    assert list(options["sampler"].type.choices) == list(SAMPLERS)
