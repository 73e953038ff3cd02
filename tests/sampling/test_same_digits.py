"""The embedded models draw the same digits as when this file was written, code for code.

Codes are compared by their SHA-256, images with `same_digits.png` within one step of 255: the last bits of
a float depend on the CPU and the batch size, codes hardly ever do. Where a code lies on such an edge, both
digests are listed. Run this file as a program to write the two files again, which is right only if the
digits are meant to change.
"""

import hashlib
import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mvar_models.pipeline import pipeline_for
from mvar_models.sampling.sampler import sample
from mvar_models.sampling.settings import SamplingSettings

HERE = Path(__file__).parent
DIGESTS, IMAGES = HERE / "same_digits.json", HERE / "same_digits.png"
MODELS = ("var-digits", "mvar-digits")
WAYS = {
    "unguided": {"guidance_scale": 0.0},
    "guided": {},
    "smooth": {"sampler": "smooth"},
}
BATCH_SIZES = (1, 3, 8)
COUNT, SHOWN = 64, 4
CASES = [(model, way) for model in MODELS for way in WAYS]


@cache
def pipeline_of(model):
    return pipeline_for(model)


def codes(model, way, batch_size):
    """(64, L) int16: classes in turn, seeds 0 to 63."""
    pipeline = pipeline_of(model)
    settings = SamplingSettings.of(pipeline.model.config, **WAYS[way])
    parts = []
    for seeds in torch.arange(COUNT).split(batch_size):
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        drawn = sample(pipeline.model, pipeline.vqvae.quantizer, seeds % 10, generators, settings)
        parts.append(drawn.indices)
    return torch.cat(parts).numpy().astype("<i2")


def digest(model, way, batch_size):
    return hashlib.sha256(codes(model, way, batch_size).tobytes()).hexdigest()


def images(model, way):
    """(32, 4 x 32, 3) uint8: the first digits of a case side by side."""
    drawn = pipeline_of(model)([i % 10 for i in range(SHOWN)], seed=0, output_type="np", **WAYS[way]).images
    return np.concatenate(list(drawn), axis=1)


@pytest.mark.parametrize("model, way", CASES)
def test_codes_drawn_one_by_one_are_the_same(model, way):
    check_codes(model, way, 1)


@pytest.mark.parametrize("batch_size", BATCH_SIZES[1:])
@pytest.mark.parametrize("model, way", CASES)
def test_codes_drawn_in_batches_are_the_same(model, way, batch_size):
    check_codes(model, way, batch_size)


def check_codes(model, way, batch_size):
    accepted = json.loads(DIGESTS.read_text())[f"{model}, {way}"]
    assert digest(model, way, batch_size) in accepted


@pytest.mark.parametrize("model, way", CASES)
def test_images_are_the_same(model, way):
    row = CASES.index((model, way)) * 32
    expected = np.array(Image.open(IMAGES))[row : row + 32].astype(int)
    assert np.abs(images(model, way).astype(int) - expected).max() <= 1


if __name__ == "__main__":
    sys.stdout.write(f"writing {DIGESTS} and {IMAGES}\n")
    found = {f"{m}, {w}": sorted({digest(m, w, size) for size in BATCH_SIZES}) for m, w in CASES}
    DIGESTS.write_text(json.dumps(found, indent=2) + "\n")
    Image.fromarray(np.concatenate([images(*case) for case in CASES])).save(IMAGES, optimize=True)
