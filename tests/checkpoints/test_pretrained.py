"""Models to files and back: presets, strictness about the tensors, and the released layout."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file

from mvar_models import MVAR, VAR
from mvar_models.checkpoints import locate, zoo
from mvar_models.checkpoints.official import from_official, to_official
from mvar_models.checkpoints.pretrained import export_official
from mvar_models.checkpoints.tensor_files import save_safetensors
from mvar_models.config import SIDES_256

from checkpoint_cases import (
    official_file,
    official_with,
    one_line,
    refused_in_one_line,
    rename,
    saved,
    small,
    small_vqvae,
    torch_file,
)
from tiny_models import tiny_mvar, tiny_var, tiny_vqvae


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


CASES = {
    "another model": (
        VAR,
        torch_file({"conv1.weight": torch.zeros(3, 3)}),
        r"not those of a released model .*VQVAE, VAR, MVAR",
    ),
    "MVAR for a VAR": (VAR, saved(model=tiny_mvar), "describes a 'mvar' model, expected 'var'"),
    "VAR for an MVAR": (MVAR, saved(), "describes a 'var' model, expected 'mvar'"),
    "other depth": (
        VAR,
        saved(config={"depth": 3}),
        "VAR, MVAR or Markov-VAR of depth 2; .* a VAR of depth 3",
    ),
    "other width": (VAR, saved(config={"width": 64}), "the file belongs to a model of another size"),
    "a tensor is missing": (VAR, saved(change=lambda state: state.pop("head.weight")), "1 entries missing"),
    "a tensor too many": (
        VAR,
        saved(change=lambda state: state.update(extra=torch.zeros(2))),
        "1 unexpected .extra",
    ),
    "a tensor renamed": (
        VAR,
        saved(change=rename("head.weight", "lm_head.weight")),
        "1 entries missing .head.weight.*lm_head.weight",
    ),
    "official block missing": (
        VAR,
        official_with(lambda state: state.pop("blocks.0.attn.proj.weight")),
        r"1 entries missing .blocks\.0\.attention\.proj\.weight",
    ),
    "unknown setting": (VAR, saved(config={"colour": "red"}), "colour"),
    "impossible setting": (VAR, saved(config={"num_heads": 5}), "num_heads"),
}


@pytest.mark.parametrize("case", CASES)
def test_tensors_that_do_not_fit_are_refused(case, tmp_path):
    cls, make, message = CASES[case]
    refused_in_one_line(cls, make(tmp_path), message)


def test_tensors_of_no_model_of_ours(tmp_path):
    tiny_var().save_pretrained(tmp_path)
    save_file({"something": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no model of this package") as error:
        VAR.from_pretrained(tmp_path)
    one_line(error)


def test_a_config_that_is_not_json(tmp_path):
    tiny_var().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        VAR.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "file, kind, preset",
    [
        ("mvar-finetune-d20.pth", MVAR, (1.5, 900, 0.96)),
        ("mvar-d16.pth", MVAR, (2.7, 1200, 0.99)),
        ("var_d30.pth", VAR, (1.5, 900, 0.96)),
        ("my-own.pth", MVAR, (2.7, 1200, 0.99)),
    ],
)
def test_a_released_file_brings_its_preset_and_imagenet_s_names(tmp_path, file, kind, preset):
    model = small(kind)
    loaded = kind.from_pretrained(official_file(tmp_path / file, to_official(model, model.config)))
    assert (loaded.config.guidance_scale, loaded.config.top_k, loaded.config.top_p) == preset
    assert loaded.config.class_names == zoo.imagenet_names()
    assert loaded.config.sides == SIDES_256
    assert loaded.config.num_heads == 2


def test_another_depth_under_a_zoo_name(tmp_path, monkeypatch, caplog):
    model = small(VAR, depth=3)
    path = official_file(tmp_path / "var_d16.pth", to_official(model, model.config))
    monkeypatch.setattr(locate, "download", lambda *args: path)
    with caplog.at_level(logging.WARNING):
        assert VAR.from_pretrained("var-d16").config.depth == 3
    assert "has depth 3, its name in the zoo says 16" in caplog.text


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
