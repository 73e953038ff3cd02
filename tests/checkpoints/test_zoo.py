"""What a name, a file or a folder becomes: registry, presets, what is read off the tensors, released
programs' forms, classes on purpose.
"""

import argparse
import json
import logging

import numpy as np
import pytest
import torch

from mvar_models import (
    MVAR,
    VAR,
    VQVAE,
    MVARConfig,
    MVARPipeline,
    VARConfig,
    VARPipeline,
    VQVAEConfig,
    list_models,
)
from mvar_models.checkpoints import imagenet, locate, peek, zoo
from mvar_models.checkpoints.official import from_official, to_official
from mvar_models.checkpoints.peek import open_checkpoint
from mvar_models.config import SIDES_256, SIDES_512, SIDES_1024
from mvar_models.pipeline import fitted, pipeline_for

from tiny_models import tiny_mvar, tiny_vqvae

NAMES = [
    "vae-ch160v4096z32", "var-d16", "var-d20", "var-d24", "var-d30", "var-d36",
    "mvar-d16", "mvar-d16-finetuned", "mvar-d20-finetuned", "mvar-d24-finetuned",
    "vae-digits", "var-digits", "mvar-digits",
]  # fmt: skip
RELEASED_SHAPE = {
    "depth": 1,
    "width": 64,
    "num_heads": 2,
    "num_classes": 1000,
    "vocab_size": 24,
    "z_channels": 4,
}


def small_vqvae():
    """Sixteen-fold, ten scales: the released layout at a small size."""
    torch.manual_seed(1)
    config = VQVAEConfig(vocab_size=24, z_channels=4, channels=32, blocks_per_level=1)
    return VQVAE(config).eval()


def small(kind=MVAR, **changes):
    torch.manual_seed(0)
    return kind(kind.config_class(**{**RELEASED_SHAPE, **changes})).eval()


def official_file(path, values, **options):
    torch.save(values, path, **options)
    return path


def test_registry():
    assert list_models() == NAMES
    for name in NAMES:
        entry = zoo.find(name)
        assert (
            entry.licence
            and entry.parameters
            and entry.resolution in (32, 256, 512)
            and entry.revision == "main"
        )
        if entry.repository != "embedded" and entry.model_type != "vqvae":
            assert (
                {"guidance_scale", "top_k", "top_p", "vqvae"} <= set(entry.preset)
                and entry.source
                and entry.scores["FID"] > 1
            )
            assert f"d{entry.depth}" in entry.file


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
    assert (
        loaded.config.class_names == imagenet.class_names()
        and loaded.config.sides == SIDES_256
        and loaded.config.num_heads == 2
    )


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


@pytest.mark.parametrize("legacy", [False, True])
def test_what_the_released_training_programs_write(tmp_path, legacy, caplog):
    """Both networks, optimizer, settings as a Namespace and numpy's numbers in one file.

    Old files are not zip archives.
    """
    mvar, vqvae = small(), small_vqvae()
    values = {
        "epoch": 3,
        "iter": np.int64(12),
        "trainer": {
            "config": {"lr": np.float32(1e-4), "patch_nums": SIDES_256},
            "mvar_wo_ddp": {
                f"module.{name}": value for name, value in to_official(mvar, mvar.config).items()
            },
            "vae_local": to_official(vqvae, vqvae.config),
            "mvar_opt": {
                "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"params": [0]}]}
            },
        },
        "args": argparse.Namespace(depth=1, loss=np.float64(2.5)),
    }
    path = official_file(tmp_path / "ar-ckpt-last.pth", values, _use_new_zipfile_serialization=not legacy)
    assert torch.equal(MVAR.from_pretrained(path).head.weight, mvar.head.weight)
    assert torch.equal(VQVAE.from_pretrained(path).decoder.conv_out.weight, vqvae.decoder.conv_out.weight)
    assert open_checkpoint(path).kind() == "mvar"
    pipeline = pipeline_for(path)
    assert isinstance(pipeline, MVARPipeline) and torch.equal(
        pipeline.vqvae.encoder.conv_in.weight, vqvae.encoder.conv_in.weight
    )
    with caplog.at_level(logging.WARNING):
        VAR.from_pretrained(path)
    assert "was written as mvar and is read as var" in caplog.text


def test_a_bare_state_dict_needs_to_be_told_what_it_is(tmp_path):
    model = small(VAR)
    path = official_file(tmp_path / "a.pth", to_official(model, model.config))
    with pytest.raises(ValueError, match=r"a\.pth .*VAR or MVAR.*arch='var' or 'mvar'"):
        pipeline_for(path)
    small_vqvae().save_pretrained(tmp_path / "vae")
    assert isinstance(pipeline_for(path, arch="var", vqvae=tmp_path / "vae"), VARPipeline)


def test_another_depth_under_a_zoo_name(tmp_path, monkeypatch, caplog):
    model = small(VAR, depth=3)
    path = official_file(tmp_path / "var_d16.pth", to_official(model, model.config))
    monkeypatch.setattr(locate, "download", lambda *args: path)
    with caplog.at_level(logging.WARNING):
        assert VAR.from_pretrained("var-d16").config.depth == 3
    assert "has depth 3, its name in the zoo says 16" in caplog.text


def test_pipelines_of_two_resolutions_share_one_vqvae():
    vqvae = small_vqvae()
    vqvae.set_sides(SIDES_256)
    other = fitted(vqvae, SIDES_1024)
    assert (
        vqvae.config.sides == SIDES_256 == vqvae.quantizer.sides
        and other.config.sides == SIDES_1024 == other.quantizer.sides
    )
    assert all(first is second for first, second in zip(vqvae.parameters(), other.parameters()))
    assert vqvae.quantizer.code_usage.shape[0] == 10 and other.quantizer.code_usage.shape[0] == 14
    assert fitted(vqvae, SIDES_256) is vqvae
    vqvae.set_sides((1, 2, 4))
    assert fitted(vqvae, SIDES_512) is vqvae, "a VQVAE of its own sides is left for the check to refuse"


def test_the_released_vqvae_serves_other_resolutions():
    """512 px takes the same file; only the sides change.

    Moved to a pyramid of another length, all of it still works.
    """
    vqvae = small_vqvae()
    vqvae.set_sides(SIDES_512)
    assert vqvae.config.resolution == 512 and vqvae.config.length == 2240
    vqvae.set_sides((1, 2, 4))
    codes = vqvae.encode(torch.zeros(1, 3, 64, 64))
    assert (
        codes.shape == (1, 21)
        and vqvae.decode(codes).shape == (1, 3, 64, 64)
        and vqvae.quantizer.code_usage.shape == (3, 24)
    )
    with pytest.raises(ValueError, match="does not fit"):
        VARPipeline(
            VAR(VARConfig(depth=1, width=32, num_heads=2, sides=SIDES_512, vocab_size=24, z_channels=4)),
            small_vqvae(),
        )
    with torch.device("meta"):
        model, released = VAR(VARConfig(depth=1, sides=SIDES_512)), VQVAE()
    assert MVARConfig().vocab_size == released.config.vocab_size
    with pytest.raises(ValueError, match="the VQVAE does not fit the model: sides"):
        VARPipeline(model, released)


def test_a_512_px_pipeline_takes_the_released_vqvae(tmp_path):
    small_vqvae().save_pretrained(tmp_path / "vae")
    model = small(VAR, sides=SIDES_512)
    path = official_file(tmp_path / "var_d36.pth", to_official(model, model.config))
    assert VARPipeline.from_pretrained(path, vqvae=tmp_path / "vae").vqvae.config.sides == SIDES_512


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


def test_devices_that_are_not_there():
    with pytest.raises(ValueError, match="device 'cuda:77' is not available"):
        VAR.from_pretrained("var-digits", device="cuda:77")
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        MVAR.from_pretrained("mvar-digits", device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"device 'cuda' is not available: .*use 'cpu'"):
            MVAR.from_pretrained("mvar-digits", device="cuda")


def test_the_vqvae_of_a_checkpoint_is_known_without_loading(tmp_path, monkeypatch):
    monkeypatch.setattr(peek, "read_values", lambda path: pytest.fail(f"{path} was read"))
    assert open_checkpoint("var-digits").vqvae_name == "vae-digits"
    assert open_checkpoint("mvar-d16").vqvae_name == "vae-ch160v4096z32"
    assert open_checkpoint("vae-digits").vqvae_name is None
    MVARPipeline(tiny_mvar(), tiny_vqvae()).save_pretrained(tmp_path)
    assert open_checkpoint(tmp_path).vqvae_name == str(tmp_path / "vqvae")
    with pytest.raises(FileNotFoundError, match="nothing: no such file"):
        open_checkpoint("nothing")


def test_a_saved_pipeline_s_own_vqvae_counts_not_the_one_named_before(tmp_path):
    model = tiny_mvar()
    model.config = model.config.replace(vqvae="vae-digits")
    MVARPipeline(model, tiny_vqvae()).save_pretrained(tmp_path)
    loaded = MVARPipeline.from_pretrained(tmp_path)
    assert torch.equal(loaded.vqvae.encoder.conv_in.weight, tiny_vqvae().encoder.conv_in.weight)
    assert loaded.model.config.vqvae is None
    assert model.config.vqvae == "vae-digits", "saving changes nothing in the model"
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"vqvae": null', '"vqvae": "vae-digits"'))
    assert open_checkpoint(tmp_path).vqvae_name == str(tmp_path / "vqvae"), "as saved by 0.1.0"


def test_windows_that_cannot_be():
    with pytest.raises(ValueError, match="kernel_size must be at least 1, got 0"):
        MVARConfig(kernel_size=0, dense_scales=10)
    assert MVAR.from_var(VAR.from_pretrained("var-digits")).config.dense_scales == 6


def test_imagenet_names():
    names = imagenet.class_names()
    assert (
        len(names) == 1000
        and names[0] == "tench, Tinca tinca"
        and names[207] == "golden retriever"
        and names[980] == "volcano"
    )


def test_labels_by_synonym_and_by_number():
    pipeline = object.__new__(MVARPipeline)
    pipeline.model = argparse.Namespace(config=MVARConfig(depth=1, class_names=imagenet.class_names()))
    labels = "Golden Retriever", "tench", "TENCH, tinca tinca", "207", 3, np.int64(4)
    assert [pipeline.label_of(label) for label in labels] == [207, 0, 0, 207, 3, 4]
    with pytest.raises(ValueError, match="unknown label 'golden retreiver': did you mean 'golden retriever'"):
        pipeline.label_of("golden retreiver")
    with pytest.raises(ValueError, match="label 'crane' is the name of classes 134, 517; give the number"):
        pipeline.label_of("crane")
    with pytest.raises(ValueError, match="unknown label 'unicorn': its classes are tench"):
        pipeline.label_of("unicorn")
    with pytest.raises(TypeError, match="a label must be an int or a class name"):
        pipeline.label_of(1.5)


def test_a_folder_that_holds_an_official_file_says_so(tmp_path):
    official_file(tmp_path / "var_d16.pth", {})
    with pytest.raises(
        FileNotFoundError, match=r"has no model.safetensors; it holds var_d16.pth: name the file itself"
    ):
        VAR.from_pretrained(tmp_path)


def test_config_is_json_that_a_person_can_read(tmp_path):
    tiny_mvar().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert (
        values["model_type"] == "mvar"
        and values["sides"] == [1, 2, 4]
        and values["class_names"] == ["ant", "bee", "cat"]
    )
    assert tiny_vqvae().config.sides == (1, 2, 4)
