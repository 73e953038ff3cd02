"""Weights to files: ours, in any type, and the released programs'."""

import pytest
import torch

from mvar_models import MVAR, VAR
from mvar_models.checkpoints.official import from_official, to_official
from mvar_models.checkpoints.pretrained import export_official
from mvar_models.checkpoints.tensor_files import save_safetensors

from checkpoint_cases import small, small_vqvae
from tiny_models import tiny_mvar


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_save_and_load(tmp_path, dtype):
    model = tiny_mvar()
    model.save_pretrained(tmp_path / "m", dtype=dtype)
    loaded = MVAR.from_pretrained(tmp_path / "m")
    assert loaded.config == model.config and loaded.dtype == torch.float32 and not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(value.to(dtype).float(), loaded.state_dict()[name]), name
    assert loaded.scale_of_token.tolist() == model.scale_of_token.tolist()
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]


def test_equal_models_are_equal_files(tmp_path):
    """Digests of files tell models apart, so the order of the header's notes must not vary."""
    model = tiny_mvar()
    for number in range(8):
        model.save_pretrained(tmp_path / str(number))
    assert len({(tmp_path / str(number) / "model.safetensors").read_bytes() for number in range(8)}) == 1


def test_export_loads_strictly_under_the_released_names(tmp_path):
    for model, entry in ((small(), "mvar_wo_ddp"), (small(VAR), None), (small_vqvae(), None)):
        path = model.export_official(tmp_path / "out.pth")
        values = torch.load(path, weights_only=True)
        state = values[entry] if entry else values
        assert {name: value.shape for name, value in state.items()} == {
            n: v.shape for n, v in to_official(model, model.config).items()
        }
        back = type(model)(model.config)
        back.load_state_dict(from_official(state, back, back.config), strict=True)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in back.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["out.pth"]


def test_a_failed_save_leaves_the_old_weights(tmp_path):
    path = tmp_path / "model.safetensors"
    save_safetensors({"a": torch.zeros(2)}, path)
    before = path.read_bytes()
    shared = torch.ones(2)
    with pytest.raises(RuntimeError, match="share memory"):
        save_safetensors({"a": shared, "b": shared}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_previous_scales_have_no_released_layout(tmp_path):
    model = tiny_mvar().with_previous_scales(1)
    with pytest.raises(ValueError, match="know no previous_scales"):
        export_official(model, model.config, tmp_path / "model.pth")
    assert not list(tmp_path.iterdir())
