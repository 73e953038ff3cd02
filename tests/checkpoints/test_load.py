"""From an opened checkpoint to a configuration and weights: presets, and strictness about the tensors."""

import logging

import pytest
import torch
from safetensors.torch import save_file

from mvar_models import MVAR, VAR
from mvar_models.checkpoints import locate, zoo
from mvar_models.checkpoints.official import to_official
from mvar_models.config import SIDES_256

from checkpoint_cases import (
    official_file,
    official_with,
    one_line,
    refused_in_one_line,
    rename,
    saved,
    small,
    torch_file,
)
from tiny_models import tiny_mvar, tiny_var

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
