"""What every model does with files: devices, the number of classes, its config.json."""

import json

import pytest
import torch

from mvar_models import MVAR, VAR

from tiny_models import tiny_mvar, tiny_vqvae


def test_devices_that_are_not_there():
    with pytest.raises(ValueError, match="device 'cuda:77' is not available"):
        VAR.from_pretrained("var-digits", device="cuda:77")
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        MVAR.from_pretrained("mvar-digits", device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"device 'cuda' is not available: .*use 'cpu'"):
            MVAR.from_pretrained("mvar-digits", device="cuda")


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_another_number_of_classes_on_purpose(tmp_path, dtype):
    model = tiny_mvar()
    model.save_pretrained(tmp_path)
    loaded = MVAR.from_pretrained(tmp_path, num_classes=5, dtype=dtype)
    old, new = model.class_embedding.weight, loaded.class_embedding.weight
    assert loaded.config.num_classes == 5 and loaded.config.class_names is None and new.shape == (6, 32)
    assert torch.equal(new[-1], old[-1].to(new.dtype)), "the unconditional row is kept"
    assert not any(torch.equal(row, other.to(new.dtype)) for row in new[:-1] for other in old)
    assert 0 < new[:-1].float().std() < 0.2
    assert torch.equal(loaded.head.weight, model.head.weight.to(new.dtype))
    assert MVAR.from_pretrained(tmp_path, num_classes=3).config == model.config
    assert loaded(torch.tensor([5]), torch.zeros(1, 20, 4, dtype=new.dtype)).shape == (1, 21, 24)
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        MVAR.from_pretrained(tmp_path, num_classes=0)


def test_config_is_json_that_a_person_can_read(tmp_path):
    tiny_mvar().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["model_type"] == "mvar"
    assert values["sides"] == [1, 2, 4]
    assert values["class_names"] == ["ant", "bee", "cat"]
    assert tiny_vqvae().config.sides == (1, 2, 4)
