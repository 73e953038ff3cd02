"""What decides an image may come in every kind of number that people have; anything else is one line.

Calls that draw: `sample`, a pipeline, its edits and variations, `mvar sample`.
"""

import math

import numpy as np
import pytest
import torch

from mvar_models import MVARPipeline
from mvar_models.sampling.hooks import SpatialGuidance

from command_cases import mvar
from tiny_models import tiny_mvar, tiny_sample, tiny_vqvae

INF, NAN = math.inf, math.nan
IMAGE = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
MASK = torch.ones(16, 16)


@pytest.fixture(scope="module")
def pipe():
    return MVARPipeline(tiny_mvar(), tiny_vqvae())


WAYS = {
    "call": lambda pipe, **given: pipe([1], output_type="pt", **given).images,
    "inpaint": lambda pipe, **given: pipe.inpaint(IMAGE, MASK, [1], output_type="pt", **given).images,
    "outpaint": lambda pipe, **given: pipe.outpaint(IMAGE, 4, [1], output_type="pt", **given).images,
    "vary": lambda pipe, **given: pipe.vary(IMAGE, 1, [1], output_type="pt", **given).images,
    "compiled": lambda pipe, **given: (
        MVARPipeline(pipe.model, pipe.vqvae).compile()([1], output_type="pt", **given).images
    ),
    "sample": lambda pipe, **given: tiny_sample(pipe.model, [1], [0], **given).f_hat,
}
# What `sample` takes as well; the others are made into generators and labels by the pipeline.
OF_SAMPLE = {"guidance_scale", "guidance_schedule", "top_k", "top_p", "sampler"}


def kinds_of(number):
    """Every way to say a number."""
    if isinstance(number, list):
        yield from (
            tuple(number),
            np.array(number),
            torch.tensor(number),
            [np.float32(each) for each in number],
        )
        return
    exact = (np.int64, np.int32, np.uint8) if isinstance(number, int) else (np.float64, np.float32)
    yield from (kind(number) for kind in exact)
    yield from (np.array(number), torch.tensor(number))


NUMBERS = [
    ("guidance_scale", 3.5),
    ("guidance_scale", 2),
    ("guidance_scale", [0.5, 1.0, 2.5]),
    ("top_k", 5),
    ("top_p", 0.5),
    ("seed", 7),
    ("seed", [7]),
    ("batch_size", 3),
    ("num_images_per_label", 2),
]


@pytest.mark.parametrize(
    "way, name, number",
    [(way, *each) for way in WAYS for each in NUMBERS if way != "sample" or each[0] in OF_SAMPLE],
)
def test_every_kind_of_number_draws_the_same(pipe, way, name, number):
    expected = WAYS[way](pipe, **{name: number})
    for kind in kinds_of(number):
        assert torch.equal(WAYS[way](pipe, **{name: kind}), expected), repr(kind)


WRONG = [
    ("guidance_scale", NAN),
    ("guidance_scale", INF),
    ("guidance_scale", np.float32(NAN)),
    ("guidance_scale", torch.tensor(NAN)),
    ("guidance_scale", [0.0, NAN, 1.0]),
    ("guidance_scale", np.array([0.0, -INF, 1.0])),
    ("guidance_scale", [1.0, 2.0]),
    ("guidance_scale", np.zeros((3, 3))),
    ("guidance_scale", "1.5"),
    ("guidance_scale", ["1", "2", "3"]),
    ("guidance_scale", True),
    ("guidance_scale", 1j),
    ("guidance_schedule", 3),
    ("guidance_schedule", ["linear"]),
    ("top_k", -1),
    ("top_k", "5"),
    ("top_k", 5.5),
    ("top_k", NAN),
    ("top_k", np.array([5, 6])),
    ("top_p", NAN),
    ("top_p", -0.1),
    ("top_p", 1.1),
    ("top_p", "0.9"),
    ("top_p", [0.9]),
    ("sampler", 3),
    ("sampler", ["ancestral"]),
    ("seed", -1),
    ("seed", 1 << 64),
    ("seed", [-1]),
    ("seed", [1 << 64]),
    ("seed", 1.5),
    ("seed", NAN),
    ("seed", "7"),
    ("seed", None),
    ("seed", torch.tensor([0.5])),
    ("batch_size", 0),
    ("batch_size", "4"),
    ("batch_size", 1.5),
    ("num_images_per_label", 0),
    ("num_images_per_label", "2"),
]


@pytest.mark.parametrize("way", WAYS)
def test_anything_else_is_one_line_that_names_the_argument(pipe, way):
    for name, value in WRONG:
        if way == "sample" and name not in OF_SAMPLE:
            continue
        with pytest.raises((TypeError, ValueError), match=name) as caught:
            WAYS[way](pipe, **{name: value})
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300, (name, value)


def test_the_last_of_consecutive_seeds_counts(pipe):
    assert len(pipe([0, 1], seed=(1 << 64) - 2)) == 2
    with pytest.raises(ValueError, match="seed of the last image"):
        pipe([0, 1, 2], seed=(1 << 64) - 2)


@pytest.mark.parametrize(
    "label", [1, np.int64(1), np.array(1), np.array([1]), torch.tensor(1), torch.tensor([1])]
)
def test_every_kind_of_label(pipe, label):
    expected = pipe([1], output_type="pt").images
    assert torch.equal(pipe(label, output_type="pt").images, expected)
    if np.ndim(label) == 0:
        assert torch.equal(pipe([label], output_type="pt").images, expected)


@pytest.mark.parametrize(
    "label", [1.5, NAN, None, "1.5", "\u00b2", -1, 3, np.array([1.5]), [[1]], True, 1 << 70]
)
def test_labels_that_are_none(pipe, label):
    with pytest.raises((TypeError, ValueError), match="label") as caught:
        pipe(label if isinstance(label, (list, np.ndarray)) else [label])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "way, name, wrong",
    [
        ("inpaint", "strength", [NAN, "1", -0.1, 1.5, None]),
        ("inpaint", "feather", [-1, "3", 1.5, NAN]),
        ("inpaint", "padding_mask_crop", [-1, "3", 1.5]),
        ("inpaint", "rule", [3, ["closed"], "open"]),
        ("outpaint", "strength", [NAN, "1"]),
    ],
)
def test_numbers_of_edits(pipe, way, name, wrong):
    for value in wrong:
        with pytest.raises((TypeError, ValueError), match=name):
            WAYS[way](pipe, **{name: value})


def test_where_edits_begin(pipe):
    drawn = pipe.vary(IMAGE, 1, [1], output_type="pt").images
    assert torch.equal(pipe.vary(IMAGE, torch.tensor(1), [1], output_type="pt").images, drawn)
    padded = pipe.outpaint(IMAGE, [1, 2, 3, 4], [1], output_type="pt").images
    assert torch.equal(pipe.outpaint(IMAGE, np.array([1, 2, 3, 4]), [1], output_type="pt").images, padded)
    for scale in (-1, 4, "1", 1.5, NAN, None):
        with pytest.raises((TypeError, ValueError), match="from_scale"):
            pipe.vary(IMAGE, scale, [1])
    for padding in (-1, "4", [1, 2], [1, 2, 3, "4"], NAN):
        with pytest.raises((TypeError, ValueError), match="padding"):
            pipe.outpaint(IMAGE, padding, [1])


@pytest.mark.parametrize("beta", [NAN, INF, "1", None])
def test_a_processor_checks_its_strength(beta):
    """NaN made every logit NaN, and every code the first."""
    with pytest.raises((TypeError, ValueError), match="beta"):
        SpatialGuidance(beta)


@pytest.mark.parametrize(
    "flags",
    [
        "--guidance-scale nan",
        "--guidance-scale inf",
        "--top-p nan",
        "--top-k -1",
        "--seed -1",
        f"--seed {1 << 64}",
    ],
)
def test_commands_say_so_before_they_touch_a_folder(tmp_path, flags):
    (tmp_path / "samples.json").write_text('{"images": []}')
    for command in ("sample --model mvar-digits --labels 3", "gallery --model mvar-digits"):
        result = mvar(f"{command} {flags} -o", tmp_path)
        name = flags.split()[0].strip("-").replace("-", "_")
        assert result.exit_code == 1 and result.output.count("\n") == 1, result.output
        assert name in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["samples.json"]
