"""One rule for every option that names a checkpoint, in every command; one line where it leads nowhere."""

import huggingface_hub
import pytest
from PIL import Image

from mvar_models.checkpoints import checkpoint
from mvar_models.checkpoints.locate import FORMS, locate
from mvar_models.cli import COMMANDS
from mvar_models.registry import resolve

from command_cases import mvar
from tiny_models import tiny_var

# A call for each option that names a checkpoint, but for the name.
CALLS = {
    ("calibrate-cache", "--model"): "calibrate-cache -o preset.json --model",
    ("classify", "--model"): "classify digits --n 1 --model",
    ("edit", "--model"): "edit --image image.png --from-scale 1 --model",
    ("edit", "--vqvae"): "edit --image image.png --from-scale 1 --model mvar-digits --vqvae",
    ("evaluate", "--model"): "evaluate --reference digits --features pixels --per-class 1 -o out --model",
    ("evaluate", "--reconstruct"): "evaluate digits --reference digits --features pixels --reconstruct",
    ("export", "--model"): "export -o x.pth --model",
    ("finetune", "--model"): "finetune --data digits --steps 1 --out run --model",
    ("finetune", "--vqvae"): "finetune --data digits --steps 1 --out run --model var-digits --vqvae",
    ("gallery", "--model"): "gallery --model",
    ("gallery", "--vqvae"): "gallery --model mvar-digits --vqvae",
    ("models", ""): "models",
    ("neon", "--model"): "neon --per-class 1 --steps 1 --out neon --model",
    ("neon", "--vqvae"): "neon --model mvar-digits --per-class 1 --steps 1 --out neon --vqvae",
    ("sample", "--refiner"): "sample --model mvar-digits --refine-from 3 --labels 1 --n 1 --refiner",
    ("sample", "--model"): "sample --model",
    ("sample", "--vqvae"): "sample --model mvar-digits --vqvae",
    ("sweep", "--model"): "sweep --reference digits --features pixels --out sweep --model",
    (
        "sweep",
        "--vqvae",
    ): "sweep --reference digits --out sweep --model mvar-digits --vqvae",
    ("tokenize", "--vqvae"): "tokenize --data digits --out tokens --vqvae",
    ("train", "--vqvae"): "train --data digits --steps 1 --depth 1 --out run --vqvae",
    ("train-scorer", "--model"): "train-scorer --data digits --steps 1 --out run --model",
    ("train-scorer", "--vqvae"): "train-scorer --model mvar-digits --data digits --steps 1 --out run --vqvae",
    ("train-vqvae", "--model"): "train-vqvae --data digits --steps 1 --out run --model",
}


class Located(Exception):
    """Stops a command as soon as it has asked where its checkpoint is."""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with an image and nothing else."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("image.png")
    return tmp_path


def test_every_option_that_names_a_checkpoint_is_called_here():
    """The help of such an option lists the forms, everywhere the same."""
    known, named = {("models", "")}, set()
    for name, row in COMMANDS.items():
        for option in resolve(row.target).params:
            if FORMS in (getattr(option, "help", None) or ""):
                known.add((name, option.opts[0]))
            if option.opts[0] in ("--model", "--vqvae", "--reconstruct", "--refiner"):
                named.add((name, option.opts[0]))
    assert known == set(CALLS)
    assert named <= known


@pytest.mark.parametrize("call", CALLS.values())
def test_every_form_reaches_the_one_rule(call, here, monkeypatch):
    """What each form becomes, test_locate.py says."""
    tiny_var().save_pretrained(here / "runs" / "best")
    forms = ["var-emoji", "org/name@v1", "runs/best", "runs", "runs/best/model.safetensors"]

    def located(name, *arguments, **options):
        if str(name) not in forms:  # the command's other checkpoint
            return locate(name, *arguments, **options)
        raise Located

    monkeypatch.setattr(checkpoint, "locate", located)
    for form in forms:
        result = mvar(f"{call} {form}")
        assert isinstance(result.exception, Located), (form, result.output)


@pytest.mark.parametrize("call", CALLS.values())
def test_a_name_that_leads_nowhere_is_one_line_and_nothing_is_written(call, here, monkeypatch):
    """HF_ENDPOINT leads nowhere in tests."""
    before = sorted(here.rglob("*"))
    download = huggingface_hub.hf_hub_download

    def asked(repository, *arguments, **options):
        assert repository == "org/name", "the Hub was asked for a path"
        assert options["local_files_only"], "a Hub that does not answer was asked again"
        return download(repository, *arguments, **options)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", asked)
    for name, message in {
        "mvar-digit": "no model of that name in the zoo; did you mean mvar-digits",
        "./nowhere": "./nowhere: no such file or folder",
        "no/such/run": "no/such/run: no such file or folder",
        "no/such.pth": "no/such.pth: no such file or folder",
        "org/name": "org/name: no such folder here, and ",
    }.items():
        result = mvar(f"{call} {name}")
        said = result.output.splitlines()
        assert result.exit_code == 1 and len(said) == 1, (name, result.output)
        assert said[0].startswith("Error: ") and message in said[0]
        assert sorted(here.rglob("*")) == before, f"{name}: nothing should be written"
