"""Names and layouts of the released state dicts, to ours and back."""

import json
from pathlib import Path

import pytest
import torch

from mvar_models import MVAR, VAR, VQVAE, MarkovVAR, MarkovVARPipeline
from mvar_models.checkpoints.checkpoint import open_checkpoint
from mvar_models.checkpoints.official import from_official, infer_config, to_official
from mvar_models.checkpoints.pretrained import export_official
from mvar_models.config import SIDES_512
from mvar_models.pipeline import pipeline_for

from checkpoint_cases import official, official_file, refused_in_one_line, small, torch_file
from tiny_models import tiny_markov_var, tiny_mvar, tiny_var, tiny_vqvae

GOLDEN = Path(__file__).parents[1] / "golden"
OFFICIAL = {
    name: layout
    for file in ("official_state_dicts.json", "sibling_state_dicts.json")
    for name, layout in json.loads((GOLDEN / file).read_text()).items()
}


RELEASED = {
    "FoundationVision/var:vae_ch160v4096z32.pth": VQVAE,
    "FoundationVision/var:var_d16.pth": VAR,
    "FoundationVision/var:var_d20.pth": VAR,
    "FoundationVision/var:var_d24.pth": VAR,
    "FoundationVision/var:var_d30.pth": VAR,
    "FoundationVision/var:var_d36.pth": VAR,
    "CVLUESTC/MVAR:mvar-d16.pth#mvar_wo_ddp": MVAR,
    "markov_var_d16": MarkovVAR,
    "markov_var_d20": MarkovVAR,
    "markov_var_d24": MarkovVAR,
}


def markov_official():
    model = tiny_markov_var()
    return to_official(model, model.config)


CASES = {
    "VQVAE for a transformer": (
        VAR,
        torch_file(lambda: to_official(tiny_vqvae(), tiny_vqvae().config)),
        "a VQVAE, not a transformer",
    ),
    "transformer for a VQVAE": (VQVAE, torch_file(official), "not a VQVAE"),
    "Markov-VAR for a VAR": (VAR, torch_file(markov_official), "this is a Markov-VAR, not a VAR"),
    "Markov-VAR in its file for an MVAR": (
        MVAR,
        torch_file(lambda: {"trainer": {"var_wo_ddp": markov_official()}}),
        "this is a Markov-VAR, not a MVAR",
    ),
    "VAR for a Markov-VAR": (MarkovVAR, torch_file(official), "this is no Markov-VAR"),
    "Markov-VAR without its scales": (
        MarkovVAR,
        torch_file(lambda: {name: value for name, value in markov_official().items() if name != "lvl_1L"}),
        "lvl_1L",
    ),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_layouts_load_strictly_and_round_trip(name):
    """On the meta device: inferred configuration, strict loading, the same names, shapes and types back."""
    layout = OFFICIAL[name]
    state = {
        entry: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for entry, (shape, dtype) in layout.items()
    }
    config = infer_config(state, RELEASED[name].config_class)
    with torch.device("meta"):
        model = RELEASED[name](config)
    assert model.num_parameters() == OFFICIAL[f"{name}#parameters"]
    model.load_state_dict(from_official(state, model, config), strict=True, assign=True)
    back = {
        entry: [list(value.shape), str(value.dtype).removeprefix("torch.")]
        for entry, value in to_official(model, config).items()
    }
    assert back == layout


@pytest.mark.parametrize("make", [tiny_var, tiny_mvar, tiny_markov_var])
def test_official_round_trip_keeps_every_value(make):
    model = make()
    other = make()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(7)
    other.load_state_dict(from_official(to_official(model, model.config), other, other.config), strict=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_exported_mask_is_the_architecture_s_own():
    """The released file's mask buffer may hold the other model's values; ours is recomputed."""
    var = to_official(tiny_var(), tiny_var().config)["attn_bias_for_masking"][0, 0]
    mvar = to_official(tiny_mvar(), tiny_mvar().config)["attn_bias_for_masking"][0, 0]
    assert torch.equal(var == 0, tiny_var().pyramid.causal_mask())
    assert mvar[1, 0] == float("-inf") and var[1, 0] == 0


def test_shape_is_read_off_the_tensors(tmp_path):
    every = (
        {"cosine_attention": False, "num_heads": 1},
        {"shared_adaln": True},
        {"sides": SIDES_512},
        {"sides": (1, 3, 7), "mlp_ratio": 2.0},
    )
    for changes in every:
        model = small(VAR, **changes)
        loaded = VAR.from_pretrained(official_file(tmp_path / "a.pth", to_official(model, model.config)))
        assert {name: getattr(loaded.config, name) for name in changes} == changes
        assert all(
            torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items()
        )


@pytest.mark.parametrize("case", CASES)
def test_a_network_of_another_kind_is_named(case, tmp_path):
    cls, make, message = CASES[case]
    refused_in_one_line(cls, make(tmp_path), message)


def test_a_markov_var_file_says_what_it_is(tmp_path):
    """Its program keeps the weights under the entry of VAR's, inside another one."""
    model = tiny_markov_var()
    export_official(model, model.config, tmp_path / "d2.pth")
    values = torch.load(tmp_path / "d2.pth", weights_only=True)
    assert list(values) == ["trainer"]
    assert list(values["trainer"]) == ["var_wo_ddp"]
    assert open_checkpoint(tmp_path / "d2.pth").kind() == "markov-var"
    tiny_vqvae().save_pretrained(tmp_path / "vqvae")
    pipeline = pipeline_for(tmp_path / "d2.pth", vqvae=tmp_path / "vqvae")
    assert isinstance(pipeline, MarkovVARPipeline)
    for name, value in model.state_dict().items():
        assert torch.equal(value, pipeline.model.state_dict()[name]), name
