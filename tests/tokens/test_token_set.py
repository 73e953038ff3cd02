"""Token sets: batches of labels and codes, in memory and in shards; fingerprints of their contents."""

import numpy as np
import pytest
import torch

from mvar_models.tokens.folder import write_shard
from mvar_models.tokens.token_set import ShardedCodes, TokenSet


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


def test_codes_in_shards_read_like_one_array(tmp_path, seed):
    """Any mix of shards, variants and repeated members; an empty shard takes part."""
    rng = np.random.default_rng(seed)
    counts = (4, 0, 9, 1)
    parts = [rng.integers(0, 4096, (2, count, 5), dtype=np.uint16) for count in counts]
    files = [tmp_path / f"{number}.npy" for number in range(len(counts))]
    for file, part in zip(files, parts):
        write_shard(file, part, [])
    indices = np.array([13, 2, 3, 8, 0, 11])
    whole = np.concatenate(parts, axis=1)[:, indices]
    sharded = ShardedCodes(files, counts, (2, 5), indices)
    assert sharded.shape == whole.shape
    members, variants = rng.integers(0, len(indices), 40), rng.integers(0, 2, 40)
    assert np.array_equal(sharded[variants, members], whole[variants, members])
    assert np.array_equal(sharded[1, members], whole[1, members])
    assert sharded[0, members[:0]].shape == (0, 5)


def test_a_pickle_is_refused(tmp_path):
    """A folder of codes from a stranger must not run code."""
    np.save(tmp_path / "x.npy", np.array([[[{}]]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"allow_pickle|Python objects|pickle"):
        ShardedCodes([tmp_path / "x.npy"], [1], (1, 1), np.arange(1))[0, np.array([0])]
