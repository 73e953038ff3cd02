"""Shards: plain .npy files, the same bytes for the same codes, believed only with their checksum, read in
batches.
"""

import numpy as np
import pytest

from mvar_models.tokens.shard import ShardedCodes, Unreadable, check_shard, is_written, write_shard

LOST = [Unreadable(7, "bee/7.png", "is empty (0 bytes)")]


def codes(count=9, seed=0):
    return np.random.default_rng(seed).integers(0, 4096, (2, count, 5), dtype=np.uint16)


def test_any_numpy_reads_a_shard(tmp_path):
    write_shard(tmp_path / "x.npy", codes(), [])
    stored = np.load(tmp_path / "x.npy", allow_pickle=False)
    assert np.array_equal(stored, codes())
    assert stored.dtype == np.dtype("<u2")


def test_a_shard_is_described_by_its_record(tmp_path):
    write_shard(tmp_path / "x.npy", codes(), LOST)
    shard = check_shard(tmp_path / "x.npy")
    assert (shard.file, shard.num_images, shard.unreadable) == ("x.npy", 9, tuple(LOST))
    assert shard.bytes == (tmp_path / "x.npy").stat().st_size


def test_the_same_codes_are_the_same_bytes(tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        write_shard(tmp_path / name / "0.npy", codes(), LOST)
    for suffix in ("npy", "json"):
        assert (tmp_path / "x" / f"0.{suffix}").read_bytes() == (tmp_path / "y" / f"0.{suffix}").read_bytes()


def test_two_bytes_per_code_and_little_else(tmp_path):
    write_shard(tmp_path / "x.npy", np.zeros((2, 2048, 680), dtype=np.uint16), [])
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert 2 * 680 * 2 < size / 2048 < 2 * 680 * 2 + 1


@pytest.mark.parametrize("position", [0, 100, -1])
def test_a_changed_byte_is_noticed(tmp_path, position):
    write_shard(tmp_path / "x.npy", codes(), [])
    content = bytearray((tmp_path / "x.npy").read_bytes())
    content[position] ^= 1
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npy is damaged"):
        check_shard(tmp_path / "x.npy")


def test_a_shard_without_a_whole_record_is_not_complete(tmp_path):
    path, record = tmp_path / "x.npy", tmp_path / "x.json"
    write_shard(path, codes(), [])
    whole = record.read_text()
    for text in (whole[:40], "[]", "{}", whole.replace("sha256", "sha")):
        record.write_text(text)
        with pytest.raises(ValueError, match=r"x\.npy is not a complete shard"):
            check_shard(path)
    record.unlink()
    assert not is_written(path)
    write_shard(path, codes(), [])
    path.unlink()
    with pytest.raises(ValueError, match=r"x\.npy is not a complete shard"):
        check_shard(path)


def test_a_failure_leaves_the_shard_as_it_was(tmp_path, monkeypatch):
    """Nothing is seen of a shard that could not be written, neither file nor record nor leftovers."""

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_shard(tmp_path / "x.npy", codes(), [])
    assert list(tmp_path.iterdir()) == []


def test_codes_in_shards_read_like_one_array(tmp_path, seed):
    """Any mix of shards, variants and repeated members; an empty shard takes part."""
    rng = np.random.default_rng(seed)
    counts = (4, 0, 9, 1)
    parts = [codes(count, number) for number, count in enumerate(counts)]
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
