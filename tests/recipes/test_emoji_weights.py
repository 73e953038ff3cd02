"""The chain that makes the emoji weights: complete on tiny images, continued, within its size."""

import json
import shlex

import numpy as np
import pytest
from PIL import Image

from mvar_models import MVAR, VAR, VQVAE, MVARConfig, VQVAEConfig

from command_cases import mvar
from script_cases import FOLDER, load_script


@pytest.fixture
def script():
    return load_script("emoji_weights")


def small(script):
    return script.Recipe(
        vae={"steps": "2", "batch-size": "4", "vocab-size": "16", "z-channels": "4", "channels": "32"},
        perceptual={"steps": "2", "batch-size": "4"},
        var={"arch": "var", "depth": "1", "width": "32", "num-heads": "1", "steps": "2", "batch-size": "4"},
        windows={"kernel-size": "3", "dense-scales": "3"},
        tuned={"steps": "2", "batch-size": "4"},
        presets={"mvar-emoji": {"guidance_scale": 2.5, "top_k": 30}},
    )


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        folder = tmp_path / "images" / label
        folder.mkdir(parents=True)
        for i in range(8):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    (tmp_path / "images" / "held_out.txt").write_text("a/0.png\nb/0.png\n")
    return tmp_path / "images"


def test_the_chain_is_made_once(script, images, tmp_path, capfd, monkeypatch):
    """Three half-precision models that belong together; a second call trains nothing."""

    def in_this_process(chain, name, command):
        # A VQVAE of a few steps keeps little of an image.
        accept = ["--accept-psnr"] if command[3] == "tokenize" else []
        result = mvar(shlex.join(command[3:] + accept))
        assert result.exit_code == 0, f"{name}: {result.output}"

    monkeypatch.setattr(script.Chain, "_run", in_this_process)
    chain = script.Chain(tmp_path / "work", tmp_path / "weights", small(script), images, images)
    chain.make()
    out = capfd.readouterr().out
    assert '_embedded("emoji", "mvar-emoji", model_type="mvar"' in out
    weights = tmp_path / "weights"
    assert (weights / "NOTICE").read_text() == (FOLDER / "emoji_notice.txt").read_text()
    card = (weights / "var-emoji" / "README.md").read_text()
    assert "license: mit" in card
    assert "mvar train --arch var --depth 1 --width 32" in card
    card = (weights / "mvar-emoji" / "README.md").read_text()
    assert 'MVARPipeline.from_pretrained("mvar-emoji")' in card
    assert "mvar finetune --model var-emoji --arch mvar --kernel-size 3 --dense-scales 3 --steps 2" in card
    assert json.loads((weights / "mvar-emoji" / "config.json").read_text())["guidance_scale"] == 2.5
    assert json.loads((tmp_path / "work" / "further" / "model" / "config.json").read_text())["top_k"] == 0
    assert json.loads((weights / "mvar-emoji" / "config.json").read_text())["vqvae"] == "vae-emoji"
    vqvae, model = VQVAE.from_pretrained(weights / "vae-emoji"), MVAR.from_pretrained(weights / "mvar-emoji")
    assert VAR.from_pretrained(weights / "var-emoji").config.class_names == ("a", "b")
    assert model.config.sides == vqvae.config.sides
    assert model.config.kernel_size == 3
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    chain.make()
    assert capfd.readouterr().out.count("stands") == 11
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}


def test_a_stage_out_of_time_is_continued(script, images, tmp_path, monkeypatch):
    chain = script.Chain(tmp_path / "work", tmp_path / "weights", small(script), images, images, minutes=0)
    with pytest.raises(SystemExit, match="vae: 0 minutes are over; run this again"):
        chain.make()
    seen = []
    monkeypatch.setattr(script.Chain, "_run", lambda self, name, command: seen.append(command))
    (tmp_path / "work" / "vae" / "checkpoints" / "step-000001").mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(script.Chain, "_store", lambda *_: None)
    chain.make("vae")
    assert seen[0][-2:] == ["--resume", str(tmp_path / "work" / "vae")]


def test_the_transformers_see_mirrors_and_the_vqvae_does_not(script, images, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(script.Chain, "_run", lambda self, name, command: seen.setdefault(name, command))
    monkeypatch.setattr(script.Chain, "_store", lambda *_: None)
    script.Chain(tmp_path / "work", tmp_path / "weights", small(script), images).make()
    assert "--mirrors" in seen["images"]
    mirrored = seen["images"][seen["images"].index("--mirrors") - 1]
    assert seen["tokens"][seen["tokens"].index("--data") + 1] == mirrored
    for name in ("vae", "perceptual"):
        assert seen[name][seen[name].index("--data") + 1] == str(images)


def test_the_recipe_fits_the_wheel(script):
    """The three networks in half precision take at most 25 MB: 680 tokens, windows of 7, 8 dense scales."""
    recipe = script.Recipe()
    sides = tuple(int(side) for side in recipe.vae["sides"].split(","))
    assert sum(side**2 for side in sides) == 680
    vqvae = VQVAE(
        VQVAEConfig(
            sides=sides,
            vocab_size=int(recipe.vae["vocab-size"]),
            z_channels=int(recipe.vae["z-channels"]),
            channels=int(recipe.vae["channels"]),
            channel_multipliers=tuple(int(part) for part in recipe.vae["channel-multipliers"].split(",")),
            blocks_per_level=1,
        )
    )
    model = MVAR(
        MVARConfig(
            depth=int(recipe.var["depth"]),
            width=int(recipe.var["width"]),
            num_heads=int(recipe.var["num-heads"]),
            num_classes=18,
            sides=sides,
            vocab_size=int(recipe.vae["vocab-size"]),
            z_channels=int(recipe.vae["z-channels"]),
            kernel_size=int(recipe.windows["kernel-size"]),
            dense_scales=int(recipe.windows["dense-scales"]),
        )
    )
    megabytes = 2 * (vqvae.num_parameters() + 2 * model.num_parameters()) / 1e6
    print(f"{megabytes:.1f} MB")
    assert megabytes < 25
