"""A folder of codes that version 0.1.0 wrote (commit 9b64a4a): read, verified, and taken for what the writer
would write.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mvar_models.data.open import open_images
from mvar_models.tokens.encode import token_fingerprint, vqvae_identity
from mvar_models.tokens.folder import TokenFolder, is_token_folder, verify_tokens
from mvar_models.tokens.writer import TokenWriter

from tiny_models import tiny_vqvae

# 11 images of two classes, one of them unreadable, in shards of 4: see `images`.
WRITTEN = Path(__file__).parent / "tokens_0_1"


@pytest.fixture
def old(tmp_path):
    """A copy of the folder that claims the codes of this machine's tiny_vqvae, whose weights come from a
    generator.
    """
    folder = shutil.copytree(WRITTEN, tmp_path / "tokens")
    index = json.loads((folder / "index.json").read_text())
    index["vqvae_identity"] = vqvae_identity(tiny_vqvae())
    (folder / "index.json").write_text(json.dumps(index, indent=2) + "\n")
    return folder


def images(folder):
    """The images that the codes were made of."""
    for label, name in enumerate(("ant", "bee")):
        (folder / name).mkdir(parents=True)
        for index in range(5):
            pixels = np.random.default_rng(10 * label + index).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            (folder / name / f"{index}.ppm").write_bytes(b"P6 16 16 255\n" + pixels.tobytes())
    (folder / "ant" / "bad.png").write_bytes(b"not an image")
    return folder


def test_it_is_read(old):
    assert is_token_folder(old)
    folder = TokenFolder(old)
    assert folder.class_names == ("ant", "bee")
    assert folder.mirror_safe
    assert folder.num_variants == 2
    assert folder.labels.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert folder.examples.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert folder.train.tolist() == [0, 1, 4, 5, 6, 7, 8]
    assert folder.held_out.tolist() == [2, 3, 9]
    assert list(folder.skipped) == ["data/ant/bad.png"]


def test_its_codes_are_read(old, seed):
    vqvae = tiny_vqvae()
    folder = TokenFolder(old)
    stored = np.concatenate([load_file(file)["codes"] for file in sorted(old.glob("*.safetensors"))], axis=1)
    rng = np.random.default_rng(seed)
    for tokens, indices in zip(folder.token_sets(vqvae), (folder.train, folder.held_out)):
        members, variants = rng.integers(0, len(indices), 20), rng.integers(0, 2, 20)
        labels, codes = tokens.batch(members, variants)
        assert np.array_equal(codes, stored[variants, indices[members]])
        assert np.array_equal(labels, folder.labels[indices[members]])
        # A run of 0.1.0 goes on only if this is what it noted.
        expected = token_fingerprint(
            folder.fingerprint, vqvae_identity(vqvae), 2, 0, folder.examples[indices]
        )
        assert tokens.fingerprint == expected


def test_it_is_verified(old):
    assert verify_tokens(old) == 3
    shard = old / "shard-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors"):
        verify_tokens(old)


def test_a_finished_one_need_not_be_written_again(old, tmp_path, caplog):
    source = open_images(images(tmp_path / "data"), 16)
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    written = TokenWriter(tiny_vqvae(), source, old, shard_size=4).write()
    assert (written.complete, written.made) == (True, 0)
    assert "its images are compared by names and sizes alone" in caplog.text
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before
    with pytest.raises(ValueError, match="seed"):
        TokenWriter(tiny_vqvae(), source, old, shard_size=4, seed=1)


def test_a_new_folder_holds_the_same(old, tmp_path):
    """Everything but the codes themselves, which another CPU may round to a neighbour."""
    source = open_images(images(tmp_path / "data"), 16)
    TokenWriter(tiny_vqvae(), source, tmp_path / "new", shard_size=4).write(batch_size=4)
    folder, new = TokenFolder(old), TokenFolder(tmp_path / "new")
    for name in ("examples", "labels", "train", "held_out"):
        assert np.array_equal(getattr(new, name), getattr(folder, name)), name
    assert new.index.data_fingerprint == folder.fingerprint
    assert new.fingerprint != folder.fingerprint, "a new folder also knows the content of the images"
    for mine, other in zip(new.token_sets(tiny_vqvae()), folder.token_sets(tiny_vqvae())):
        codes, others = (tokens.codes[1, np.arange(len(tokens))] for tokens in (mine, other))
        assert (codes == others).mean() > 0.95


def test_an_unfinished_one_is_refused_in_one_line(old, tmp_path):
    source = open_images(images(tmp_path / "data"), 16)
    index = json.loads((old / "index.json").read_text())
    (old / "index.json").unlink()
    (old / "settings.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"tokens was begun by version 0\.1 .*; remove it") as found:
        TokenWriter(tiny_vqvae(), source, old, shard_size=4)
    assert "\n" not in str(found.value)
