"""Token sets: batches of labels and codes, and fingerprints of their contents."""

import numpy as np
import torch

from mvar_models.tokens.token_set import TokenSet


def tokens(seed=0):
    rng = np.random.default_rng(seed)
    return TokenSet(rng.integers(0, 4096, (3, 5, 7), dtype=np.uint16), np.array([4, 3, 2, 1, 0]))


def test_a_batch_takes_one_variant_for_all_or_one_for_each():
    some = tokens()
    members = np.array([4, 0, 0])
    labels, codes = some.batch(members)
    assert labels.tolist() == [0, 4, 4]
    assert labels.dtype == codes.dtype == torch.int64
    assert np.array_equal(codes, some.codes[0, members])
    _, codes = some.batch(members, np.array([2, 0, 1]))
    assert np.array_equal(codes, np.stack([some.codes[2, 4], some.codes[0, 0], some.codes[1, 0]]))


def test_the_fingerprint_changes_with_codes_and_labels():
    some = tokens()
    assert some.fingerprint == tokens().fingerprint
    others = [
        TokenSet(some.codes[:, ::-1], some.labels),
        TokenSet(some.codes[::-1], some.labels),
        TokenSet(some.codes, some.labels[::-1]),
    ]
    assert len({some.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert TokenSet(some.codes, some.labels, "given").fingerprint == "given"
