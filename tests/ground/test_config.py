"""Configurations: derived values, the JSON form there and back, and values that contradict each other."""

import json

import pytest
import torch

from mvar_models.config import (
    RELEASED_SIDES,
    MVARConfig,
    VARConfig,
    VQVAEConfig,
    read_config,
    released_dense_scales,
    residual_assignment,
)

SMALL = dict(depth=2, width=32, num_heads=2, num_classes=2, sides=[1, 2, 4])


def test_residual_assignment_is_that_of_float64():
    assert residual_assignment(10, 4) == (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)


@pytest.mark.parametrize(
    "config",
    [
        VQVAEConfig(vocab_size=8, sides=[1, 3], residual_convolution_of_scale=[1, 0]),
        VARConfig(**SMALL, class_names=["ant", "bee"]),
        MVARConfig(**SMALL, kernel_size=3, dense_scales=2),
    ],
    ids=lambda config: config.model_type,
)
def test_json_and_back(config, tmp_path):
    """Lists come back as tuples, so that the configuration equals the one that was written and hashes."""
    path = tmp_path / "config.json"
    path.write_text(config.to_json(), encoding="utf-8")
    back = type(config).from_dict(read_config(path))
    assert back == config
    assert hash(back) == hash(config)


@pytest.mark.parametrize(
    "values, match",
    [
        ({"model_type": "var"}, r"here.*'var'.*'mvar'"),
        ({"depht": 3, "colour": "red"}, r"here.*colour, depht"),
        ({"kernel_size": 0}, r"here.*kernel_size.*0"),
        ({"width": 30, "num_heads": 4}, r"here.*width.*30.*num_heads.*4"),
        ({"num_classes": 2, "class_names": ["ant"]}, r"here.*class_names.*2.*1"),
    ],
)
def test_wrong_values_are_named_with_their_source(values, match):
    with pytest.raises(ValueError, match=match):
        MVARConfig.from_dict(values, source="here")


def test_every_scale_of_a_vqvae_needs_a_residual_convolution():
    with pytest.raises(ValueError, match=r"residual_convolution_of_scale.*3.*2"):
        VQVAEConfig(sides=(1, 2, 4), residual_convolution_of_scale=(0, 1))


@pytest.mark.parametrize("content", [json.dumps([1]), "{", b"\xff\xfe{}"])
def test_a_file_that_is_no_json_object_is_named(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"config\.json.*JSON"):
        read_config(path)


@pytest.mark.parametrize("resolution", RELEASED_SIDES)
def test_released_pyramids_fit_the_released_vqvae(resolution):
    sides = RELEASED_SIDES[resolution]
    vqvae = VQVAEConfig(sides=sides)
    assert vqvae.resolution == resolution
    assert vqvae.length == VARConfig(sides=sides).length == len(VARConfig(sides=sides).scale_of_token())


def test_released_shapes():
    config = MVARConfig()
    assert (config.width, config.num_heads, config.head_dim) == (1024, 16, 64)
    assert config.length == 680
    assert [released_dense_scales(RELEASED_SIDES[resolution]) for resolution in (256, 512)] == [8, 6]


def test_released_masks_know_scales_and_no_windows():
    """VAR's token sees the coarser scales too, MVAR's its own scale alone, whatever its window."""
    var = VARConfig(**SMALL).released_mask()
    mvar = MVARConfig(**SMALL, kernel_size=1, dense_scales=0).released_mask()
    scale = VARConfig(**SMALL).scale_of_token()
    assert torch.equal(var, scale[:, None] >= scale)
    assert torch.equal(mvar, scale[:, None] == scale)
