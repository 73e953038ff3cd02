"""Settings of sampling: checked once; as preset files, config.json and records, and from flags to images."""

import json
from dataclasses import fields

import numpy as np
import pytest

from mvar_models import MVARConfig, MVARPipeline
from mvar_models.sampling.sampler import Sampler
from mvar_models.sampling.settings import SamplingOptions, SamplingSettings, read_preset

from command_cases import mvar

PRESET = SamplingSettings(guidance_scale=3.5, top_k=17, top_p=0.5, guidance_schedule="constant")


def test_every_setting_has_a_default_in_config_json_and_a_keyword():
    names = [field.name for field in fields(SamplingSettings)]
    assert set(names) <= set(MVARConfig.field_names())
    assert set(names) == set(SamplingOptions.__annotations__)
    config = MVARConfig(guidance_scale=2.0, top_k=7, top_p=0.5, guidance_schedule="cosine", sampler="smooth")
    assert SamplingSettings.of(config) == SamplingSettings(2.0, 7, 0.5, "cosine", "smooth")
    assert SamplingSettings.of(config, top_k=3, top_p=None) == SamplingSettings(
        2.0, 3, 0.5, "cosine", "smooth"
    )


def test_a_misspelt_setting_is_named():
    with pytest.raises(TypeError, match="unexpected keyword arguments: topk"):
        SamplingSettings.of(MVARConfig(), topk=3)


def test_only_a_sampler_with_a_name_can_be_recorded():
    own = SamplingSettings(1.0, 0, 0.0, sampler=Sampler())
    with pytest.raises(ValueError, match="sampler must be a name"):
        own.to_dict()


def test_a_checkpoint_may_have_a_sampler_of_its_own(tmp_path):
    smooth = SamplingSettings(3.5, 17, 0.5, sampler="smooth")
    smooth.write(tmp_path / "preset.json")
    pipeline = MVARPipeline.from_pretrained("mvar-digits", preset=tmp_path / "preset.json")
    plain = MVARPipeline.from_pretrained("mvar-digits")
    images = plain([1], output_type="np", **smooth.to_dict()).images
    assert np.array_equal(pipeline([1], output_type="np").images, images)
    assert not np.array_equal(pipeline([1], output_type="np", sampler="ancestral").images, images)
    saved = MVARPipeline.from_pretrained(pipeline.save_pretrained(tmp_path / "saved"))
    assert SamplingSettings.of(saved.model.config) == smooth


@pytest.fixture
def file(tmp_path):
    PRESET.write(tmp_path / "preset.json")
    return tmp_path / "preset.json"


def test_a_file_holds_the_arguments_of_a_call(file):
    assert json.loads(file.read_text()) == {
        "guidance_scale": 3.5,
        "top_k": 17,
        "top_p": 0.5,
        "guidance_schedule": "constant",
        "sampler": "ancestral",
        "scorer": None,
        "candidates": 4,
        "candidate_scales": "1:",
        "cache_budget": 1.0,
        "cache_rule": "attention",
        "cache_drafters": [],
    }
    assert read_preset(file) == PRESET


def test_a_file_without_a_schedule_has_the_released_one(tmp_path):
    path = tmp_path / "preset.json"
    path.write_text('{"guidance_scale": 3.5, "top_k": 17, "top_p": 0.5}')
    assert read_preset(path) == SamplingSettings(
        guidance_scale=3.5, top_k=17, top_p=0.5, guidance_schedule="linear"
    )


def test_a_pipeline_takes_a_preset_and_keeps_it(file, tmp_path):
    plain, other = (MVARPipeline.from_pretrained("mvar-digits", **more) for more in ({}, {"preset": file}))
    images = other([1, 2], seed=3, output_type="np").images
    assert np.array_equal(images, plain([1, 2], seed=3, output_type="np", **PRESET.to_dict()).images)
    for changed in ({}, {**PRESET.to_dict(), "guidance_schedule": "linear"}):
        assert not np.array_equal(images, plain([1, 2], seed=3, output_type="np", **changed).images)
    saved = MVARPipeline.from_pretrained(other.save_pretrained(tmp_path / "saved"))
    assert saved.model.config.guidance_scale == 3.5
    assert (saved.model.config.top_k, saved.model.config.top_p) == (17, 0.5)
    assert saved.model.config.guidance_schedule == "constant"
    assert np.array_equal(images, saved([1, 2], seed=3, output_type="np").images)


def test_mvar_sample_takes_a_preset_and_flags_come_first(file, tmp_path):
    command = "sample --model mvar-digits --labels 7 --n 1 --top-k 3 --preset"
    result = mvar(command, file, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    options = json.loads((tmp_path / "out" / "samples.json").read_text())["settings"]
    assert options == {**PRESET.to_dict(), "top_k": 3}
    again = mvar("sample --again", tmp_path / "out" / "samples.json", "-o", tmp_path / "again")
    assert again.exit_code == 0, again.output
    (first,), (second,) = ([*(tmp_path / name).glob("0*.png")] for name in ("out", "again"))
    assert first.read_bytes() == second.read_bytes()


@pytest.fixture
def constant(file, tmp_path):
    """A checkpoint whose schedule is constant."""
    return MVARPipeline.from_pretrained("mvar-digits", preset=file).save_pretrained(tmp_path / "constant")


@pytest.mark.parametrize("by", ["flag", "preset"])
def test_linear_guidance_is_recorded_where_the_checkpoint_has_another(constant, tmp_path, by):
    linear = tmp_path / "linear.json"
    linear.write_text('{"guidance_scale": 3.5, "top_k": 17, "top_p": 0.5}')
    option = "--guidance-schedule linear" if by == "flag" else f"--preset {linear}"
    result = mvar(f"sample --model {constant} --labels 7 --n 1 {option} -o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert record["settings"]["guidance_schedule"] == "linear"


def test_a_sweep_keeps_the_schedule_of_the_checkpoint(constant, tmp_path):
    command = f"sweep --model {constant} --reference digits@train --features pixels --per-class 1"
    result = mvar(f"{command} --guidance-scale 1 -o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert read_preset(tmp_path / "out" / "preset.json").guidance_schedule == "constant"


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "is not valid JSON"),
        ("[1, 2]", r"must be an object with keys, got \[1, 2\]"),
        ('{"guidance_scale": 1, "top_k": 0}', "lacks the entry top_p"),
        ('{"guidance_scale": 1, "top_k": 0, "top_p": 0, "seed": 1}', "does not know: seed"),
        (
            '{"guidance_scale": "1", "top_k": 0, "top_p": 0}',
            "guidance_scale must be a number or a list, got '1'",
        ),
        ('{"guidance_scale": 1, "top_k": 0.5, "top_p": 0}', r"top_k must be a whole number, got 0\.5"),
        ('{"guidance_scale": 1, "top_k": true, "top_p": 0}', "top_k must be a whole number, got True"),
        (
            '{"guidance_scale": NaN, "top_k": 0, "top_p": 0}',
            "guidance_scale must be a finite number, got nan",
        ),
        ('{"guidance_scale": 1, "top_k": -1, "top_p": 0}', "top_k must be .* got -1"),
        ('{"guidance_scale": 1, "top_k": 0, "top_p": 1.5}', r"top_p must be .* got 1\.5"),
        (
            '{"guidance_scale": 1, "top_k": 0, "top_p": 0, "guidance_schedule": "steep"}',
            "guidance_schedule must be one of linear, constant, cosine, got 'steep'",
        ),
        (
            '{"guidance_scale": 1, "top_k": 0, "top_p": 0, "guidance_schedule": [1]}',
            r"guidance_schedule must be text, got \[1\]",
        ),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, reason):
    path = tmp_path / "preset.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=reason) as caught:
        read_preset(path)
    assert str(caught.value).startswith(f"{path}")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path):
    result = mvar("sample --model mvar-digits --preset", tmp_path / "none.json")
    assert result.exit_code == 1
    assert (
        result.output.strip()
        == f"Error: preset: {tmp_path / 'none.json'} is no file; a preset is what `mvar sweep` writes"
    )
