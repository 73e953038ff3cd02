"""Encoding in memory: the VQVAE's codes, variants that depend on their example alone, identities of what
codes are made of.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from mvar_models import VQVAE
from mvar_models.data.digits import Digits
from mvar_models.data.open import open_images
from mvar_models.pipeline.identity import network_identity
from mvar_models.tokens.encode import tokenize, tokenize_split

from odd_images import BROKEN, ODD, fill, plain_folder
from tiny_models import tiny_vqvae


def test_tokens_are_the_vqvae_s_codes():
    digits = Digits(32)
    vqvae = VQVAE.from_pretrained("vae-digits")
    indices = np.array([4, 9, 100])
    tokens = tokenize(vqvae, digits, indices, num_variants=3, seed=1)
    assert tokens.codes.dtype == np.uint16
    assert tokens.codes.shape == (3, 3, 130)
    labels, codes = tokens.batch(np.array([2, 0]))
    assert labels.tolist() == digits.labels[[100, 4]].tolist()
    assert torch.equal(codes, vqvae.encode(digits.images(indices[[2, 0]])))


def test_a_variant_depends_on_seed_and_example_alone(digits):
    vqvae, indices = tiny_vqvae(), np.array([4, 9, 100])
    codes = tokenize(vqvae, digits, indices, num_variants=3, seed=1).codes
    assert not np.array_equal(codes[0], codes[1])
    assert not np.array_equal(codes[1], codes[2])
    assert np.array_equal(codes, tokenize(vqvae, digits, indices, num_variants=3, seed=1).codes)
    assert not np.array_equal(codes[1:], tokenize(vqvae, digits, indices, num_variants=3, seed=7).codes[1:])
    alone = tokenize(vqvae, digits, indices[1:2], num_variants=3, seed=1).codes
    assert np.array_equal(alone, codes[:, 1:2]), "neighbours in the batch must not matter"


def test_unreadable_images_are_left_out(mixed):
    source = open_images(mixed, 16)
    tokens = tokenize(tiny_vqvae(), source, np.arange(len(source)))
    assert len(tokens) == len(ODD) + 8
    assert len(source.unreadable) == len(BROKEN)
    assert tokens.codes.shape == (1, len(tokens), 21)


def test_training_images_get_variants_and_held_out_ones_none(mixed):
    train, held_out = tokenize_split(tiny_vqvae(), open_images(mixed, 16))
    assert train.num_variants == 2, "the image and its mirror"
    assert held_out.num_variants == 1


def test_a_class_without_a_readable_image_is_named(tmp_path):
    folder = fill(tmp_path / "mixed")
    for name in ODD:
        (folder / "odd" / name).unlink()
    with pytest.raises(ValueError, match=r"class 'odd' .*\(8 tried; .*bomb.png"):
        tokenize_split(tiny_vqvae(), open_images(folder, 16), 1, 0)


def test_more_variants_than_there_are_is_refused(mixed):
    with pytest.raises(ValueError, match=r"copies .* between 1 and 2 .*, got 3"):
        tokenize(tiny_vqvae(), open_images(mixed, 16), np.arange(3), num_variants=3)


def test_fingerprints_change_with_images_variants_and_vqvae(digits):
    vqvae, indices = tiny_vqvae(), np.arange(12)
    one = tokenize(vqvae, digits, indices)
    assert one.fingerprint == tokenize(vqvae, digits, indices).fingerprint
    others = [
        tokenize(vqvae, digits, indices[1:]),
        tokenize(vqvae, digits, indices, num_variants=2),
        tokenize(other_vqvae(), digits, indices),
    ]
    assert len({one.fingerprint, *(tokens.fingerprint for tokens in others)}) == 4


def test_the_fingerprint_of_codes_in_memory_knows_what_was_changed_in_place(tmp_path):
    file = plain_folder(tmp_path) / "red" / "x.bmp"
    seen = []
    for colour in ("red", "red", "blue"):
        Image.new("RGB", (16, 16), colour).save(file)
        seen.append(tokenize(tiny_vqvae(), open_images(tmp_path, 16), np.arange(7)).fingerprint)
    assert seen[0] == seen[1] != seen[2]


def other_vqvae():
    """Another weight than `tiny_vqvae` in one place."""
    vqvae = tiny_vqvae()
    with torch.no_grad():
        vqvae.quantizer.codebook.weight[0, 0] += 1
    return vqvae


def test_identity_is_of_configuration_and_weights(tmp_path):
    """Not of the folder, nor of the statistics of training."""
    vqvae = tiny_vqvae()
    vqvae.save_pretrained(tmp_path / "a")
    vqvae.quantizer.code_usage += 1
    assert network_identity(vqvae) == network_identity(VQVAE.from_pretrained(tmp_path / "a"))
    assert network_identity(vqvae) != network_identity(other_vqvae())
    assert network_identity(vqvae) != network_identity(vqvae.with_sides((1, 2, 3, 4)))
