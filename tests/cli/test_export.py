"""`mvar export`: the file for the released programs."""

import pytest

from mvar_models import MVAR, VQVAE

from command_cases import mvar


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
