"""The commands models, export and doctor."""

import pytest

from mvar_kernels import __main__ as selfcheck
from mvar_models import MVAR, VQVAE, list_models
from mvar_models.pipeline import MVARPipeline

from command_cases import mvar


def test_a_pattern_selects():
    lines = mvar("models 'mvar-d*'").output.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == list_models("mvar-d*")


def test_a_line_says_where_the_weights_come_from_and_what_was_published():
    line, _ = mvar("models 'mvar-d16*'").output.splitlines()[1:-1]
    assert line.endswith("CVLUESTC/MVAR/mvar-d16.pth")
    assert "3.01" in line
    assert " 256 " in line


def test_without_a_pattern_all_are_listed():
    output = mvar("models").output
    for name in list_models():
        assert name in output


def test_a_released_model_is_described_without_its_weights():
    """HF_ENDPOINT leads nowhere in tests."""
    result = mvar("models mvar-d16")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].startswith("mvar-d16: MVAR, 256 px, 310 M parameters, licence: see its page")
    assert "guidance_scale 2.7" in lines[1] and "top_k 1200" in lines[1]
    assert lines[2] == "VQVAE: vae-ch160v4096z32"
    assert lines[3] == "1000 classes:" and lines[4].split(maxsplit=1) == ["0", "tench, Tinca tinca"]
    assert len(lines) == 1004


def test_a_model_folder_is_described(tmp_path):
    MVAR.from_pretrained("mvar-emoji").save_pretrained(tmp_path / "model")
    lines = mvar("models", tmp_path).output.splitlines()
    assert str(tmp_path / "model" / "model.safetensors") in lines[-22]
    assert lines[-18:] == mvar("models mvar-emoji").output.splitlines()[-18:]
    assert lines[-1].split() == ["17", "noto-travel-places"]


@pytest.mark.parametrize("name, network", [("mvar-digits", MVAR), ("vae-digits", VQVAE)])
def test_the_file_holds_the_model(tmp_path, name, network):
    path = tmp_path / "model.pth"
    result = mvar(f"export --model {name} --out", path)
    assert result.exit_code == 0, result.output
    model = network.from_pretrained(name)
    assert f"{model.num_parameters():,}" in result.output
    assert str(path) in result.output
    assert path.stat().st_size >= sum(value.nbytes for value in model.parameters())
    assert list(tmp_path.iterdir()) == [path]


def test_it_checks_the_kernels_and_draws_from_the_embedded_model():
    result = mvar("doctor")
    assert result.exit_code == 0
    assert "tiled" in result.output
    assert "embedded models" in result.output


@pytest.mark.parametrize("code", [0, 1])
def test_its_exit_code_is_that_of_the_self_check(monkeypatch, code):
    monkeypatch.setattr(selfcheck, "main", lambda: code)
    assert mvar("doctor").exit_code == code


def test_weights_that_do_not_load_are_a_failure(monkeypatch):
    def fails(name):
        raise ValueError(name)

    monkeypatch.setattr(selfcheck, "main", lambda: 0)
    monkeypatch.setattr(MVARPipeline, "from_pretrained", fails)
    assert mvar("doctor").exit_code == 1
