"""From settings to a network: classes, windows, and what a checkpoint brings along."""

import logging

import pytest
import torch

from mvar_models import MVAR, VAR, MVARConfig, VQVAEConfig
from mvar_models.config import SIDES_256, SIDES_512
from mvar_models.training import runs
from mvar_models.training.build import build_transformer, describe_vqvae, new_vqvae_config
from mvar_models.training.settings import TransformerSettings

from tiny_models import NAMES, tiny_mvar, tiny_var, tiny_vqvae


def settings(**given):
    return TransformerSettings(data="", out="", vqvae="tiny", **given)


@pytest.fixture
def saved(tmp_path):
    tiny_var().save_pretrained(tmp_path / "var")
    tiny_mvar().save_pretrained(tmp_path / "mvar")
    return tmp_path


def test_classes_that_fit_are_kept(saved, caplog):
    with caplog.at_level(logging.WARNING):
        model = build_transformer(settings(init=str(saved / "var")), tiny_vqvae(), NAMES)
    assert torch.equal(model.class_embedding.weight, tiny_var().class_embedding.weight)
    assert not [record for record in caplog.records if "class" in record.getMessage()]
    assert "no scale has windows" in caplog.text, "sides of at most 4 are all dense by default"
    assert model.config.class_names == NAMES


def test_image_net_folders_named_by_wordnet_id_keep_the_embeddings(saved):
    names = ("n01440764", "n01443537", "n01484850")
    model = build_transformer(settings(init=str(saved / "var")), tiny_vqvae(), names)
    assert torch.equal(model.class_embedding.weight, tiny_var().class_embedding.weight)
    assert model.config.class_names == names


def test_wordnet_ids_in_another_order_are_other_classes(tmp_path, caplog):
    model = tiny_var()
    model.config = model.config.replace(class_names=("n01443537", "n01440764", "n01484850"))
    model.save_pretrained(tmp_path)
    names = ("n01440764", "n01443537", "n01484850")
    with caplog.at_level(logging.WARNING):
        built = build_transformer(settings(init=str(tmp_path)), tiny_vqvae(), names)
    assert "class embeddings are initialised" in caplog.text
    assert not torch.equal(built.class_embedding.weight, tiny_var().class_embedding.weight)


def test_names_that_were_stored_with_accents_apart_are_the_same_classes(tmp_path, caplog):
    model = tiny_var()
    model.config = model.config.replace(class_names=("cafe\u0301", "tea", "water"))
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        built = build_transformer(settings(init=str(tmp_path)), tiny_vqvae(), ("caf\xe9", "tea", "water"))
    assert built.config.class_names == ("caf\xe9", "tea", "water")
    assert "class embeddings" not in caplog.text


@pytest.mark.parametrize("names", [("ant", "bee", "cow"), ("ant", "bee"), tuple("abcdefg")])
def test_other_classes_start_anew(saved, caplog, names):
    """Drawn from the run's seed, said in the log; the unconditional class and everything else stay."""
    with caplog.at_level(logging.WARNING):
        first, again, other = (
            build_transformer(settings(init=str(saved / "var"), seed=seed), tiny_vqvae(), names)
            for seed in (0, 0, 1)
        )
    assert f"({len(names)}: " in caplog.text
    assert "class embeddings" in caplog.text
    assert "seed 0" in caplog.text
    assert first.config.class_names == names
    assert first.class_embedding.weight.shape[0] == len(names) + 1
    assert torch.equal(first.class_embedding.weight, again.class_embedding.weight)
    assert not torch.equal(first.class_embedding.weight[:-1], other.class_embedding.weight[:-1])
    assert torch.equal(first.class_embedding.weight[-1], tiny_var().class_embedding.weight[-1])
    assert torch.equal(first.head.weight, tiny_var().head.weight)


def test_windows(saved):
    """What is asked for; else as released: 8 of the 256 px scales attend to all of themselves, 6 of the 512
    px ones. An MVAR keeps its own.
    """
    for sides, dense in ((SIDES_256, 8), (SIDES_512, 6)):
        config = MVARConfig(**MVARConfig.settings_for(sides))
        assert (config.kernel_size, config.dense_scales) == (7, dense)
    model = build_transformer(
        settings(init=str(saved / "var"), kernel_size=3, dense_scales=1), tiny_vqvae(), NAMES
    )
    assert (model.config.kernel_size, model.config.dense_scales) == (3, 1)
    model = build_transformer(settings(init=str(saved / "mvar")), tiny_vqvae(), NAMES)
    assert (model.config.kernel_size, model.config.dense_scales) == (3, 2)
    assert torch.equal(model.head.weight, tiny_mvar().head.weight)
    with pytest.raises(ValueError, match="kernel_size 3, not 5"):
        build_transformer(settings(init=str(saved / "mvar"), kernel_size=5), tiny_vqvae(), NAMES)
    with pytest.raises(ValueError, match="is a vqvae model"):
        tiny_vqvae().save_pretrained(saved / "vae")
        build_transformer(settings(init=str(saved / "vae")), tiny_vqvae(), NAMES)
    assert isinstance(
        build_transformer(settings(init=str(saved / "var"), arch="var"), tiny_vqvae(), NAMES), VAR
    )


def test_the_released_shapes(tmp_path):
    """`resolution` gives the released model's configuration; other settings beside it count."""
    run = runs.start_vqvae_run(data="digits", out=str(tmp_path / "a"), resolution=512, vocab_size=64)
    assert new_vqvae_config(run.settings) == VQVAEConfig(sides=SIDES_512, vocab_size=64)
    assert describe_vqvae(run.settings) == "a new VQVAE for images of 512 px: 10 scales, 2240 codes of 64"
    for side in (32, 64, 128):
        out = str(tmp_path / str(side))
        run = runs.start_vqvae_run(data="digits", out=out, resolution=side, z_channels=8)
        shape = new_vqvae_config(run.folder.read_settings())
        assert (shape.resolution, shape.vocab_size, shape.z_channels) == (side, 1024, 8)
    with pytest.raises(ValueError, match=r"resolution must .*300"):
        runs.start_vqvae_run(data="digits", out=str(tmp_path / "b"), resolution=300)


def test_markov_var_has_windows_only_if_asked():
    for kernel_size, dense in ((None, 0), (3, 3)):
        asked = settings(arch="markov-var", width=128, num_heads=2, depth=2, kernel_size=kernel_size)
        config = build_transformer(asked, tiny_vqvae(), NAMES).config
        assert (config.kernel_size, config.dense_scales) == (kernel_size, dense)


def test_previous_scales_come_from_any_checkpoint(saved):
    """The parameters of VAR, MVAR and MVAR with previous scales are the same."""
    for init in ("var", "mvar"):
        asked = settings(init=str(saved / init), previous_scales=1)
        model = build_transformer(asked, tiny_vqvae(), NAMES)
        assert model.config.previous_scales == 1
    model.save_pretrained(saved / "adjacent")
    kept = build_transformer(settings(init=str(saved / "adjacent")), tiny_vqvae(), NAMES)
    assert kept.config.previous_scales == 1
    back = build_transformer(settings(init=str(saved / "adjacent"), previous_scales=0), tiny_vqvae(), NAMES)
    assert back.config.previous_scales == 0
    with pytest.raises(ValueError, match=r"'alternating'.*previous_scales"):
        build_transformer(settings(init=str(saved / "adjacent"), schedule="alternating"), tiny_vqvae(), NAMES)
    with pytest.raises(ValueError, match="previous_scales is a setting of an MVAR"):
        build_transformer(settings(arch="markov-var", previous_scales=1), tiny_vqvae(), NAMES)
    with pytest.raises(ValueError, match=r"previous_scales must .*-1"):
        build_transformer(settings(init=str(saved / "var"), previous_scales=-1), tiny_vqvae(), NAMES)


@pytest.mark.parametrize(
    "windows, reason",
    [
        ({"dense_scales": 0, "kernel_size": 3}, "no scale is dense"),
        ({"dense_scales": 6, "kernel_size": 3}, "no scale has windows"),
        ({"dense_scales": 2, "kernel_size": 9}, "no scale has windows"),
        ({}, "no scale has windows"),  # the released windows, wider than the digits' six scales
    ],
)
def test_scales_of_one_kind_do_not_alternate(saved, tmp_path, monkeypatch, windows, reason):
    """Refused at the start, before images are encoded, and of checkpoints as well."""
    monkeypatch.setattr(runs, "open_tokens", None)
    run = runs.start_transformer_run(data="digits", out=tmp_path / "run", schedule="alternating", **windows)
    with pytest.raises(ValueError, match=f"'alternating'.*{reason}.*use 'packed'"):
        runs.train_transformer(run)
    config = tiny_mvar().config
    windows = {"kernel_size": 7, **windows, "dense_scales": min(windows.get("dense_scales", 8), 3)}
    model = MVAR(config.replace(**windows))
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=f"'alternating'.*{reason}.*use 'packed'"):
        build_transformer(settings(init=str(tmp_path / "model"), schedule="alternating"), tiny_vqvae(), NAMES)
