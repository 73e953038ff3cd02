"""Files: names to the released ones and back, safe and strict reading, atomic writing, one-line diagnoses."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mvar_models import MVAR, VAR, VQVAE, MVARConfig, VARConfig, VQVAEConfig
from mvar_models.checkpoints.official import from_official, infer_config, to_official
from mvar_models.config import residual_assignment
from mvar_models.files import replacing, write_text

OFFICIAL = json.loads((Path(__file__).parents[1] / "golden" / "official_state_dicts.json").read_text())
RELEASED = {
    "FoundationVision/var:vae_ch160v4096z32.pth": VQVAE,
    "FoundationVision/var:var_d16.pth": VAR,
    "FoundationVision/var:var_d20.pth": VAR,
    "FoundationVision/var:var_d24.pth": VAR,
    "FoundationVision/var:var_d30.pth": VAR,
    "FoundationVision/var:var_d36.pth": VAR,
    "CVLUESTC/MVAR:mvar-d16.pth#mvar_wo_ddp": MVAR,
}
TINY = dict(depth=2, width=32, num_heads=2, num_classes=4, vocab_size=16, z_channels=4, sides=(1, 2, 3))


def tiny_var():
    torch.manual_seed(0)
    return VAR(VARConfig(**TINY))


def tiny_mvar():
    torch.manual_seed(0)
    return MVAR(MVARConfig(**TINY, kernel_size=3, dense_scales=2))


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


def test_residual_assignment_is_that_of_float64():
    assert residual_assignment(10, 4) == (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)


@pytest.mark.parametrize("make", [tiny_var, tiny_mvar])
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
    """The released file's mask buffer may hold the other model's values; ours is made anew."""
    var = to_official(tiny_var(), tiny_var().config)["attn_bias_for_masking"][0, 0]
    mvar = to_official(tiny_mvar(), tiny_mvar().config)["attn_bias_for_masking"][0, 0]
    assert torch.equal(var == 0, tiny_var().pyramid.causal_mask())
    assert mvar[1, 0] == float("-inf") and var[1, 0] == 0


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


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"mvar_wo_ddp": s, "epoch": 3},
        lambda s: {"trainer": {"var_wo_ddp": s, "config": {}}},
    ],
)
def test_official_files_and_their_wrappers(tmp_path, wrap):
    model = VAR(VARConfig(depth=1, width=64, num_heads=1, num_classes=3, vocab_size=8, z_channels=4))
    state = {f"module._orig_mod.{name}": value for name, value in to_official(model, model.config).items()}
    torch.save(wrap(state), tmp_path / "ar-ckpt.pth")
    for cls in (VAR, MVAR):
        loaded = cls.from_pretrained(tmp_path / "ar-ckpt.pth")
        assert torch.equal(loaded.head.weight, model.head.weight) and loaded.config.num_classes == 3


def one_line(error):
    message = str(error.value)
    assert "\n" not in message and len(message) < 600
    return message


def test_wrong_files_are_named(tmp_path):
    model = tiny_var()
    model.save_pretrained(tmp_path / "var")
    with pytest.raises(FileNotFoundError, match=r"no model of that name in the zoo .*mvar-digits"):
        VAR.from_pretrained(tmp_path / "nothing")
    with pytest.raises(ValueError, match="describes a 'var' model, expected 'mvar'"):
        MVAR.from_pretrained(tmp_path / "var")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        VAR.from_pretrained(tmp_path / "empty")
    weights = tmp_path / "var" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a complete safetensors file") as error:
        VAR.from_pretrained(tmp_path / "var")
    one_line(error)
    weights.write_bytes(b"")
    with pytest.raises(ValueError, match="is empty"):
        VAR.from_pretrained(tmp_path / "var")
    save_file({"something": torch.zeros(2)}, weights)
    with pytest.raises(ValueError, match="no model of this package") as error:
        VAR.from_pretrained(tmp_path / "var")
    one_line(error)
    (tmp_path / "var" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        VAR.from_pretrained(tmp_path / "var")


def test_wrong_depth_says_what_the_file_is(tmp_path):
    tiny_var().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "depth": 3}))
    with pytest.raises(ValueError, match="seems to be a VAR or MVAR of depth 2") as error:
        VAR.from_pretrained(tmp_path)
    one_line(error)


def test_vqvae_where_a_transformer_is_asked_for(tmp_path):
    vae = VQVAE(VQVAEConfig(8, 4, 32, channel_multipliers=(1,), blocks_per_level=1))
    torch.save(to_official(vae, vae.config), tmp_path / "vae.pth")
    with pytest.raises(ValueError, match="this is a VQVAE, not a transformer"):
        VAR.from_pretrained(tmp_path / "vae.pth")
    var = VAR(VARConfig(depth=1, width=64, num_heads=1, num_classes=3, vocab_size=8, z_channels=4))
    torch.save(to_official(var, var.config), tmp_path / "var.pth")
    with pytest.raises(ValueError, match="not a VQVAE"):
        VQVAE.from_pretrained(tmp_path / "var.pth")


class _Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (Path(self.target),)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    witness = tmp_path / "ran"
    with (tmp_path / "evil.pth").open("wb") as file:
        pickle.dump({"pos_1LC": _Payload(str(witness))}, file)
    torch.save({"pos_1LC": _Payload(str(witness))}, tmp_path / "evil_zip.pth")
    for name in ("evil.pth", "evil_zip.pth"):
        with pytest.raises(ValueError, match="without running code") as error:
            VAR.from_pretrained(tmp_path / name)
        one_line(error)
    assert not witness.exists()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "file"
    write_text(target, "old")
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]
