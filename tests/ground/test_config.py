"""Configurations: derived values, the JSON form there and back, and values that contradict each other."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from mvar_models.config import (
    RELEASED_SIDES,
    MVARConfig,
    VARConfig,
    VQVAEConfig,
    released_dense_scales,
    residual_assignment,
)
from mvar_models.records import read_record

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
    back = type(config).from_dict(read_record(path, dict[str, Any]))
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
        ({"num_classes": 2, "class_names": [1, 2]}, r"here.*class_names\[0\] must be text, got 1"),
        ({"class_names": "ab", "num_classes": 2}, r"here.*class_names must be a list, got 'ab'"),
        ({"width": 10**9}, r"here.*width.*65,536.*1000000000"),
        ({"num_heads": 0}, r"here.*num_heads.*from 1.*got 0"),
        ({"mlp_ratio": float("inf")}, r"here.*mlp_ratio.*inf"),
        ({"mlp_ratio": -1}, r"here.*mlp_ratio.*-1"),
        ({"depth": "two"}, r"here.*depth.*whole number.*'two'"),
        ({"depth": True}, r"here.*depth.*whole number.*True"),
        ({"sides": [1, "2"]}, r"here.*sides\[1\].*'2'"),
        ({"sides": []}, r"here.*sides.*64 sides"),
        ({"sides": [4096] * 2}, r"here.*sides.*4,194,304 tokens"),
        ({"shared_adaln": "no"}, r"here.*shared_adaln.*true or false.*'no'"),
        ({"guidance_scale": float("nan")}, r"here.*guidance_scale.*nan"),
        ({"top_p": 2}, r"here.*top_p.*2"),
    ],
)
def test_wrong_values_are_named_with_their_source(values, match):
    with pytest.raises(ValueError, match=match):
        MVARConfig.from_dict(values, source="here")


@pytest.mark.parametrize(
    "values, match",
    [
        ({"sides": (1, 2, 4), "residual_convolution_of_scale": (0, 1)}, r"of_scale.*3.*2"),
        ({"sides": (1, 2), "residual_convolution_of_scale": (0, 99)}, r"of_scale.*num_residual.*4.*99"),
        ({"channels": 48}, r"channels.*32.*48"),
        ({"channel_multipliers": ()}, r"channel_multipliers.*1 to 16"),
    ],
)
def test_a_vqvae_that_cannot_be_built_is_refused(values, match):
    with pytest.raises(ValueError, match=match):
        VQVAEConfig(**values)


def test_numpys_numbers_become_pythons():
    given = {**SMALL, "depth": np.int64(2), "sides": np.array([1, 2, 4]), "mlp_ratio": np.float32(2)}
    config = VARConfig(**given)
    assert config == VARConfig(**SMALL, mlp_ratio=2.0)
    assert json.loads(config.to_json())["sides"] == [1, 2, 4]
    with pytest.raises(TypeError, match=r"depth.*whole number.*'2'"):
        MVARConfig(depth="2")


@pytest.mark.parametrize("content", [json.dumps([1]), "{", b"\xff\xfe{}"])
def test_a_file_that_is_no_json_object_is_named(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"config\.json.*(JSON|object|UTF)"):
        read_record(path, dict[str, Any])


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
