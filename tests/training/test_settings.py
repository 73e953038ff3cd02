"""Settings refuse what cannot train, and survive a run folder."""

import numpy as np
import pytest
import torch

from mvar_models.training.run_folder import RunFolder
from mvar_models.training.settings import TransformerSettings, VQVAESettings


@pytest.mark.parametrize(
    "name, value",
    [
        ("batch_size", 0),
        ("accumulate", 0),
        ("keep", 0),
        ("steps", -1),
        ("save_every", -1),
        ("ema", 1.0),
        ("precision", "int8"),
        ("lr", 0.0),
        ("arch", "vqvae"),
        ("schedule", "random"),
        ("scale_weights", "sides"),
        ("label_drop", 1.0),
        ("drop_path", -0.1),
        ("seed", -1),
        ("seed", 1 << 64),
        ("lr", float("nan")),
        ("weight_decay", float("inf")),
        ("evaluate_features", "inception"),
    ],
)
def test_wrong_values_are_named(name, value):
    with pytest.raises(ValueError, match=rf"{name} must .*{value}"):
        TransformerSettings(data="digits", out="", **{name: value})


@pytest.mark.parametrize("name, value", [("lr", "1e-3"), ("steps", 1.5), ("fsdp", "no"), ("data", 3)])
def test_wrong_types_are_named(name, value):
    with pytest.raises(TypeError, match=rf"{name} must be .*{value}"):
        TransformerSettings(**{"data": "digits", "out": "", name: value})


def test_numbers_paths_and_devices_of_other_libraries(tmp_path):
    given = {
        "steps": np.int64(3),
        "lr": np.float32(0.5),
        "fsdp": np.bool_(False),
        "betas": np.array([0.5, 0.5]),
    }
    settings = TransformerSettings(data=tmp_path, out=tmp_path / "a", device=torch.device("cpu"), **given)
    same = TransformerSettings(str(tmp_path), str(tmp_path / "a"), steps=3, lr=0.5, betas=(0.5, 0.5))
    assert settings == same and repr(settings) == repr(same)


@pytest.mark.parametrize("name", ["commitment", "perceptual", "adversarial", "adversarial_start"])
def test_wrong_values_of_a_vqvae_are_named(name):
    with pytest.raises(ValueError, match=rf"{name} must .*-1"):
        VQVAESettings(data="digits", out="", **{name: -1})


def test_only_scales_that_stand_alone_alternate():
    for arch in ("var", "markov-var"):
        with pytest.raises(ValueError, match=rf"'alternating'.*this model is a {arch}; use 'packed'"):
            TransformerSettings(data="digits", out="", arch=arch, schedule="alternating")
    TransformerSettings(data="digits", out="", arch="mvar", schedule="alternating")


@pytest.mark.parametrize(
    "settings",
    [
        TransformerSettings(data="digits", out="", betas=(0.8, 0.9), ema=0.99, kernel_size=5),
        VQVAESettings(data="digits", out="", sides=(1, 2, 4), channel_multipliers=(1, 2)),
    ],
)
def test_a_run_folder_gives_them_back(tmp_path, settings):
    settings = type(settings).from_dict({**settings.to_dict(), "out": str(tmp_path / "run")})
    folder = RunFolder.create(settings)
    assert RunFolder(folder.path).read_settings() == settings


@pytest.mark.parametrize("text", ["kind: unknown\n", "- 1\n", "steps: 3\n"])
def test_other_yaml_is_refused(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config.yaml.*(configuration of a run|an object)"):
        RunFolder(tmp_path).read_settings()
