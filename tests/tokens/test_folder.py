"""A finished folder of codes: the codes that would be made in memory, the same split, checked, and refused
where it does not fit.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mvar_models import VQVAE
from mvar_models.data.open import open_images
from mvar_models.data.source import ImageSource
from mvar_models.tokens.encode import tokenize_split
from mvar_models.tokens.folder import (
    EXAMPLE_TYPE,
    FORMAT,
    TokenFolder,
    Unreadable,
    check_shard,
    is_token_folder,
    is_written,
    open_data,
    read_index,
    refuse_tokens,
    verify_tokens,
    write_shard,
)

from odd_images import BROKEN, EMPTY, ODD
from tiny_models import tiny_vqvae
from token_folders import write


@pytest.fixture
def written(digits, tmp_path):
    """The digits in three shards."""
    write(digits, tmp_path / "tokens", batch_size=64, writer={"shard_size": 600})
    return tmp_path / "tokens"


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


def test_a_folder_of_codes_equals_codes_in_memory(mixed, tmp_path, seed):
    """Broken images left out, both variants, the same split, the same fingerprint."""
    vqvae, source = tiny_vqvae(), open_images(mixed, 16)
    assert write(source, tmp_path / "tokens").complete
    folder = TokenFolder(tmp_path / "tokens")
    assert folder.class_names == ("odd", "plain")
    assert folder.num_variants == 2
    assert folder.mirror_safe
    assert len(folder) == len(ODD) + 8
    rng = np.random.default_rng(seed)
    from_disk, in_memory = folder.token_sets(vqvae, 2), tokenize_split(vqvae, source, 2, 0)
    for disk, memory, num_variants in zip(from_disk, in_memory, (2, 1)):
        assert len(disk) == len(memory) > 0
        assert np.array_equal(disk.labels, memory.labels)
        members, variants = rng.integers(0, len(disk), 40), rng.integers(0, num_variants, 40)
        for mine, other in zip(disk.batch(members, variants), memory.batch(members, variants)):
            assert torch.equal(mine, other)
            assert mine.dtype == torch.int64
    mine, other = (tokens.batch(np.arange(3))[1] for tokens in (from_disk[0], in_memory[0]))
    assert torch.equal(mine, other)


def test_the_second_variant_is_the_mirror(mixed, tmp_path):
    vqvae, source = tiny_vqvae(), open_images(mixed, 16)
    write(source, tmp_path / "tokens")
    folder = TokenFolder(tmp_path / "tokens")
    row = int(np.flatnonzero(folder.labels)[0])
    image = source.images(folder.examples[[row]])
    stored = np.concatenate([np.load(file) for file in folder.files], axis=1)
    for variant, expected in enumerate((image, image.flip(-1))):
        assert np.array_equal(stored[variant, row], vqvae.encode(expected)[0].numpy())


def test_the_split_is_that_of_the_images(digits, written):
    folder = TokenFolder(written)
    assert np.array_equal(folder.train, digits.train)
    assert np.array_equal(folder.held_out, digits.held_out)
    assert folder.fingerprint == digits.fingerprint


def test_what_was_skipped_is_in_the_index(mixed, tmp_path):
    write(open_images(mixed, 16), tmp_path / "tokens")
    skipped = TokenFolder(tmp_path / "tokens").skipped
    reasons = {name.rsplit("/", 1)[1]: reason for name, reason in skipped.items()}
    assert set(reasons) == {*BROKEN, EMPTY}
    assert all(reasons[name].startswith(message) for name, (_, message) in BROKEN.items())


@pytest.mark.parametrize("name", ["shard-00001.npy", "examples.npy"])
def test_a_changed_byte_is_found_by_verify(digits, written, name):
    assert verify_tokens(written) == 3
    flip_a_bit(written / name)
    assert len(TokenFolder(written)) == len(digits), "opening looks at sizes only"
    with pytest.raises(ValueError, match=rf"1 of 4 files .*\({name}\); remove them and index\.json"):
        verify_tokens(written)


@pytest.mark.parametrize("name", ["shard-00001.npy", "examples.npy"])
def test_a_file_cut_short_or_missing_is_found_on_opening(written, name):
    file = written / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{name} has \d+ bytes instead of \d+; remove .*index\.json"):
        TokenFolder(written)
    file.unlink()
    with pytest.raises(ValueError, match=rf"{name} is missing; remove .*index\.json"):
        TokenFolder(written)


def test_codes_of_another_vqvae_are_refused(written):
    other = tiny_vqvae()
    with torch.no_grad():
        other.quantizer.codebook.weight[0, 0] += 1
    with pytest.raises(ValueError, match=r"another VQVAE \(.*vqvae_identity"):
        TokenFolder(written).token_sets(other)
    with pytest.raises(ValueError, match=r"another VQVAE \(.*sides is \[1, 2, 4\], .*\[1, 2, 3, 4, 6, 8\]\)"):
        TokenFolder(written).token_sets(VQVAE.from_pretrained("vae-digits"))


def test_more_variants_than_it_holds_are_refused(written):
    with pytest.raises(ValueError, match=r"holds 1 variants .*copies asks for 2"):
        TokenFolder(written).token_sets(tiny_vqvae(), 2)


def test_it_is_told_from_folders_of_images(written, mixed):
    assert is_token_folder(written)
    assert not is_token_folder(mixed)
    assert isinstance(open_data(written), TokenFolder)
    assert isinstance(open_data(mixed), ImageSource)
    refuse_tokens(mixed)
    refuse_tokens("digits")
    Image.new("RGB", (9, 9)).save(written / "reconstruction.png")
    with pytest.raises(ValueError, match="tokens holds codes, not images"):
        refuse_tokens(written)


def test_a_later_format_is_refused(written):
    index = (written / "index.json").read_text()
    (written / "index.json").write_text(index.replace(FORMAT, "mvar-tokens-9"))
    assert is_token_folder(written)
    with pytest.raises(ValueError, match="mvar-tokens-9"):
        read_index(written)


_FEW_DESCRIPTORS = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
import numpy as np
from mvar_models.tokens.folder import TokenFolder
from tiny_models import tiny_vqvae
folder = TokenFolder(Path(sys.argv[1]))
rng = np.random.default_rng(0)
for tokens in folder.token_sets(tiny_vqvae()):
    for members in np.array_split(rng.permutation(len(tokens)), 10):
        labels, codes = tokens.batch(members, rng.integers(0, 2, len(members)))
        assert (codes[:, 0] == labels % 24).all()
    print(len(tokens))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits are POSIX")
def test_a_folder_of_more_shards_than_a_process_may_open_files(digits, tmp_path):
    """ImageNet has 626, and a folder opens them for training and for validation."""
    vqvae, count = tiny_vqvae(), 2000
    write(digits, tmp_path / "small", batch_size=64, writer={"shard_size": 2000})
    index = json.loads((tmp_path / "small" / "index.json").read_text())
    labels = np.arange(2 * count, dtype=np.int64)
    codes = np.zeros((2, 2, vqvae.config.length), dtype="<u2")
    index |= {"class_names": [str(label) for label in labels], "num_variants": 2, "shards": []}
    for number in range(count):
        codes[:, :, 0] = labels[2 * number : 2 * number + 2] % 24
        file = tmp_path / f"shard-{number:05d}.npy"
        np.save(file, codes)
        record = {"file": file.name, "sha256": "", "bytes": file.stat().st_size, "num_images": 2}
        index["shards"].append(record)
    examples = np.empty(2 * count, dtype=EXAMPLE_TYPE)
    examples["example"] = examples["label"] = labels
    examples["held_out"] = labels % 2
    np.save(tmp_path / "examples.npy", examples)
    index["examples"]["bytes"] = (tmp_path / "examples.npy").stat().st_size
    (tmp_path / "index.json").write_text(json.dumps(index))
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root / "tests" / "support"), str(root)])
    done = subprocess.run(
        [sys.executable, "-c", _FEW_DESCRIPTORS, tmp_path],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("2000\n2000\n", "")


def test_a_code_that_the_vqvae_has_not_is_named(written):
    """An embedding would be asked for it: on a GPU, that ends the process."""
    shard = written / "shard-00001.npy"
    content = bytearray(shard.read_bytes())
    content[-1] = 255
    shard.write_bytes(content)
    tokens = TokenFolder(written).token_sets(tiny_vqvae())[0]
    with pytest.raises(
        ValueError, match=r"shard-00001\.npy is damaged: it holds the code 6\d+, the VQVAE has 24"
    ):
        for start in range(0, len(tokens), 100):
            tokens.batch(np.arange(start, min(start + 100, len(tokens))))


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
