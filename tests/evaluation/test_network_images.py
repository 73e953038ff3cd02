"""Images that networks make when they are read."""

import numpy as np
import torch

from mvar_models.evaluation.network_images import DecodedImages, DrawnImages
from mvar_models.images import to_uint8
from mvar_models.pipeline import Pipeline
from mvar_models.tokens.token_set import TokenSet

from tiny_models import tiny_mvar, tiny_vqvae


def test_an_image_depends_on_its_label_and_seed_alone():
    pipeline = Pipeline(tiny_mvar(), tiny_vqvae())
    images = DrawnImages(pipeline, [2, 0, 1, 1], seed=5)
    assert len(images) == 4
    assert images.size == (16, 16)
    found, kept = images.read(np.array([3, 0]))
    assert kept.tolist() == [0, 1]
    assert np.array_equal(found, pipeline([1, 2], seed=[8, 5], output_type="np"))
    assert np.array_equal(images.read(np.arange(4))[0][[3, 0]], found)
    assert not np.array_equal(*images.read(np.array([2, 3]))[0]), "equal labels have seeds of their own"
    others = [DrawnImages(pipeline, [2, 0, 1, 1], seed=6), DrawnImages(pipeline, [2, 0, 1, 2], seed=5)]
    assert len({each.digest for each in (images, *others)}) == 3
    assert images.read(np.empty(0, dtype=np.int64))[0].shape[0] == 0


def test_codes_are_decoded_as_their_images():
    codes = np.random.default_rng(0).integers(0, 24, (2, 12, 21), dtype=np.uint16)
    tokens = TokenSet(codes, np.arange(12) % 3)
    images = DecodedImages(tiny_vqvae(), tokens, np.array([1, 4, 5, 6, 7, 8, 9, 10, 11]))
    assert images.labels.tolist() == [1, 1, 2, 0, 1, 2, 0, 1, 2]
    with torch.no_grad():
        expected = to_uint8(tiny_vqvae().decode(torch.from_numpy(codes[0].astype(np.int64))))
    found, kept = images.read(np.arange(9))
    assert np.array_equal(found, expected[[1, 4, 5, 6, 7, 8, 9, 10, 11]])
    assert kept.tolist() == list(range(9))
    assert images.read(np.empty(0, dtype=np.int64))[0].shape == (0, 16, 16, 3)
    assert images.digest != DecodedImages(tiny_vqvae(), tokens, np.array([1, 4])).digest
