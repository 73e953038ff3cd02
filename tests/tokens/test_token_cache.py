"""The token cache: the codes that would be made in memory, in the same bytes whoever makes them, checked, and refused where they do not fit."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from mvar_models import VAR, VQVAE
from mvar_models.cli.main import main
from mvar_models.data.digits import Digits
from mvar_models.data.open import open_images
from mvar_models.evaluation.reconstruction import reconstruct
from mvar_models.tokens import shard as token_shards
from mvar_models.tokens import writer as token_writer
from mvar_models.tokens.encode import tokenize, tokenize_split, vqvae_identity
from mvar_models.tokens.folder import TokenFolder, verify_tokens
from mvar_models.tokens.token_set import TokenSet

from odd_pictures import BROKEN, EMPTY, ODD, fill
from tiny_models import tiny_vqvae


@pytest.fixture(scope="module")
def digits():
    return Digits(16)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("data") / "mixed")


def write(source, folder, vqvae=None, *, writer=None, **settings):
    writer = token_writer.TokenWriter(
        vqvae or tiny_vqvae(), source, folder, **{"shard_size": 10, **(writer or {})}
    )
    return writer.write(**{"batch_size": 4, **settings})


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_tokens_are_the_vqvae_s_codes():
    digits = Digits(32)
    vqvae = VQVAE.from_pretrained("vae-digits")
    which = np.array([4, 9, 100])
    tokens = tokenize(vqvae, digits, which, num_variants=3, seed=1)
    assert tokens.codes.dtype == np.uint16 and tokens.codes.shape == (3, 3, 130)
    labels, indices = tokens.batch(np.array([2, 0]))
    assert labels.tolist() == digits.labels[[100, 4]].tolist()
    assert torch.equal(indices, vqvae.encode(digits.images(which[[2, 0]])))
    assert not np.array_equal(tokens.codes[0], tokens.codes[1]) and not np.array_equal(
        tokens.codes[1], tokens.codes[2]
    )
    assert np.array_equal(tokens.codes, tokenize(vqvae, digits, which, num_variants=3, seed=1).codes)
    alone = tokenize(vqvae, digits, which[1:2], num_variants=3, seed=1)
    assert np.array_equal(alone.codes, tokens.codes[:, 1:2]), (
        "a variant depends on its example, not on its neighbours"
    )


def test_a_folder_of_codes_equals_codes_in_memory(mixed, tmp_path, seed):
    """Broken pictures left out, both copies, the same split, the same fingerprint; the mirror is the mirror's code."""
    vqvae, source = tiny_vqvae(), open_images(mixed, 16)
    assert write(source, tmp_path / "tokens").complete
    folder = TokenFolder(tmp_path / "tokens")
    assert folder.num_variants == 2 and folder.mirror_safe and folder.class_names == ("odd", "plain")
    assert len(folder) == len(ODD) + 8
    from_disk, in_memory = folder.token_sets(vqvae, 2), tokenize_split(vqvae, source, 2, 0)
    rng = np.random.default_rng(seed)
    for disk, memory, copies in zip(from_disk, in_memory, (2, 1)):
        assert len(disk) == len(memory) > 0 and np.array_equal(disk.labels, memory.labels)
        members, which = rng.integers(0, len(disk), 40), rng.integers(0, copies, 40)
        for mine, other in zip(disk.batch(members, which), memory.batch(members, which)):
            assert torch.equal(mine, other) and mine.dtype == torch.int64
    assert torch.equal(from_disk[0].batch(np.arange(3))[1], in_memory[0].batch(np.arange(3), 0)[1])
    image = source.images(np.flatnonzero(source.labels)[:1])
    row = int(np.flatnonzero(folder.labels)[0])
    everything = np.concatenate([token_shards.map_tensor(file, "codes") for file in folder.files], axis=1)
    for copy, picture in enumerate((image, image.flip(-1))):
        assert np.array_equal(everything[copy, row], vqvae.encode(picture)[0].numpy())


def test_what_was_left_out_is_in_the_index(mixed, tmp_path):
    write(open_images(mixed, 16), tmp_path / "tokens")
    left_out = json.loads((tmp_path / "tokens" / "index.json").read_text())["left_out"]
    reasons = {name.rsplit("/", 1)[1]: reason for name, reason in left_out.items()}
    assert set(reasons) == {*BROKEN, EMPTY}
    assert all(reasons[name].startswith(message) for name, (_, message) in BROKEN.items())


def test_processes_write_the_same_bytes(digits, tmp_path):
    settings = {"shard_size": 300}
    write(digits, tmp_path / "one", batch_size=64, writer=settings)
    done = [
        write(digits, tmp_path / "three", batch_size=64, writer=settings, rank=rank, world_size=3)
        for rank in (2, 0, 1)
    ]
    assert [written.complete for written in done] == [False, False, True]
    assert sum(written.made for written in done) == len(digits) and all(written.made for written in done)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_bytes_a_picture(tmp_path):
    """2 bytes a code, and next to nothing beside: 680 codes and their mirror are 2.7 KB."""
    rng = np.random.default_rng(0)
    tensors = {
        "codes": rng.integers(0, 4096, (2, 2048, 680)),
        "examples": np.arange(2048),
        "labels": np.zeros(2048),
        "held_out": np.zeros(2048),
    }
    token_shards.write_shard(tmp_path / "x.safetensors", tensors, {})
    assert 2 * 680 * 2 < (tmp_path / "x.safetensors").stat().st_size / 2048 < 2735
    from safetensors.numpy import load_file

    assert np.array_equal(load_file(tmp_path / "x.safetensors")["codes"], tensors["codes"]), (
        "any safetensors reader reads it"
    )


_KILLED = """
import sys
from mvar_models.tokens import writer as token_writer
from mvar_models.data.digits import Digits
from tiny_models import tiny_vqvae
token_writer.TokenWriter(tiny_vqvae(), Digits(16), __import__("pathlib").Path(sys.argv[1]), shard_size=100).write(batch_size=10)
"""


def test_a_killed_run_goes_on_with_the_missing_shards(digits, tmp_path):
    write(digits, tmp_path / "straight", batch_size=10, writer={"shard_size": 100})
    folder = tmp_path / "killed"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).parents[1] / "support"), str(Path(__file__).parents[2])]
        ),
    }
    process = subprocess.Popen([sys.executable, "-c", _KILLED, str(folder)], env=environment)
    while len(list(folder.glob("shard-*.safetensors"))) < 3:
        assert process.poll() is None, "it should still be at work"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder / ".shard-00009.safetensors.half.safetensors").write_bytes(b"cut")
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*.safetensors")}
    assert 3 <= len(kept) < 18 and not (folder / "index.json").exists()
    with pytest.raises(
        ValueError, match="killed is not complete; run the `mvar tokenize` command that began it again"
    ):
        TokenFolder(folder)
    written = write(digits, folder, batch_size=10, writer={"shard_size": 100})
    assert written.complete and written.made == len(digits) - 100 * len(kept)
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert contents(folder) == contents(tmp_path / "straight")


def test_a_damaged_shard_of_an_unfinished_folder_is_made_again(digits, tmp_path, caplog):
    settings = {"shard_size": 600}
    write(digits, tmp_path / "straight", batch_size=64, writer=settings)
    folder = tmp_path / "damaged"
    write(digits, folder, batch_size=64, writer=settings, rank=0, world_size=2)
    shard = folder / "shard-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-500] ^= 1
    shard.write_bytes(data)
    (folder / "shard-00002.safetensors").write_bytes(data[:100])
    with caplog.at_level(logging.WARNING):
        assert write(digits, folder, batch_size=64, writer=settings).made == len(digits)
    assert "shard-00000.safetensors is damaged: its contents do not have the checksum" in caplog.text
    assert "shard-00002.safetensors is not a complete shard of codes" in caplog.text
    assert contents(folder) == contents(tmp_path / "straight")


def test_a_finished_folder_is_verified(digits, tmp_path):
    folder = tmp_path / "tokens"
    write(digits, folder, batch_size=64, writer={"shard_size": 600})
    assert verify_tokens(folder) == 3
    shard = folder / "shard-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-9] ^= 1
    shard.write_bytes(data)
    assert len(TokenFolder(folder)) == len(digits), "sizes alone are looked at when a folder is opened"
    with pytest.raises(
        ValueError,
        match=r"1 of 3 shards are damaged \(shard-00001.safetensors\); remove them and index.json, and run",
    ):
        verify_tokens(folder)
    shard.write_bytes(data[:-1])
    with pytest.raises(
        ValueError, match=r"shard-00001.safetensors has \d+ bytes instead of \d+; remove .*index.json and run"
    ):
        TokenFolder(folder)
    shard.unlink()
    with pytest.raises(ValueError, match=r"shard-00001.safetensors is missing"):
        TokenFolder(folder)


def test_another_vqvae_other_data_or_settings_are_refused(mixed, digits, tmp_path):
    vqvae, folder = tiny_vqvae(), tmp_path / "tokens"
    write(open_images(mixed, 16), folder)
    other = tiny_vqvae()
    with torch.no_grad():
        other.quantizer.codebook.weight[0, 0] += 1
    assert vqvae_identity(tiny_vqvae()) == vqvae_identity(vqvae) != vqvae_identity(other)
    message = r"tokens was made with another VQVAE \(.*its vqvae_identity is .*\); train with that one, or run `mvar tokenize`"
    with pytest.raises(ValueError, match=message):
        TokenFolder(folder).token_sets(other)
    with pytest.raises(
        ValueError, match=r"another VQVAE \(: its sides is \[1, 2, 4\], this one's \[1, 2, 3, 4, 6, 8\]\)"
    ):
        TokenFolder(folder).token_sets(VQVAE.from_pretrained("vae-digits"))
    with pytest.raises(
        ValueError,
        match=r"holds codes made with other settings \(vqvae_identity differ\); use those, or remove the folder",
    ):
        write(open_images(mixed, 16), folder, other)
    with pytest.raises(
        ValueError, match=r"other settings \(class_names, copies, data_fingerprint, flips differ\)"
    ):
        write(digits, folder)
    assert not write(open_images(mixed, 16), folder).made, "the same again has nothing to do"
    (folder / "index.json").unlink()
    write(open_images(mixed, 16), tmp_path / "begun", rank=1, world_size=2)
    with pytest.raises(ValueError, match=r"begun holds codes made with other settings \(copies differ\)"):
        write(open_images(mixed, 16), tmp_path / "begun", writer={"num_variants": 1})


def test_wrong_numbers(digits, tmp_path):
    with pytest.raises(ValueError, match="copies must be between 1 and 64 for this data, got 65"):
        write(digits, tmp_path, writer={"num_variants": 65})
    with pytest.raises(ValueError, match="shard_size must be at least 1, got 0"):
        write(digits, tmp_path, writer={"shard_size": 0})
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        write(digits, tmp_path, batch_size=0)
    with pytest.raises(
        ValueError,
        match=r"copies must be between 1 and 2 for this data \(the image and its mirror\), got 3",
    ):
        tokenize(tiny_vqvae(), open_images(fill(tmp_path / "mixed"), 16), np.arange(3), num_variants=3)


def test_a_class_without_a_readable_picture_is_named(tmp_path):
    folder = fill(tmp_path / "mixed")
    for name in ODD:
        (folder / "odd" / name).unlink()
    with pytest.raises(
        ValueError,
        match=r"class 'odd' has no image that can be read \(8 tried; .*bomb.png claims more than",
    ):
        write(open_images(folder, 16), tmp_path / "tokens")
    with pytest.raises(ValueError, match="class 'odd' has no image that can be read"):
        tokenize_split(tiny_vqvae(), open_images(folder, 16), 1, 0)


def test_a_vqvae_that_does_not_fit_is_noticed(seed):
    vqvae, digits = VQVAE.from_pretrained("vae-digits"), Digits(32)
    good = reconstruct(vqvae, digits.images(np.arange(32)))
    assert good.fits and good.psnr > 30 and good.flat < 12 and good.image.size == (8 * 34 - 2, 66)
    bad = reconstruct(vqvae, torch.rand(32, 3, 32, 32) * 2 - 1)
    assert not bad.fits and bad.psnr < 10


def test_fingerprints_of_token_sets(digits):
    vqvae, which = tiny_vqvae(), np.arange(12)
    one = tokenize(vqvae, digits, which)
    assert one.fingerprint == tokenize(vqvae, digits, which).fingerprint
    others = [
        tokenize(vqvae, digits, which[1:]),
        tokenize(vqvae, digits, which, num_variants=2),
        TokenSet(one.codes, one.labels),
    ]
    assert len({one.fingerprint, *(tokens.fingerprint for tokens in others)}) == 4
    assert TokenSet(one.codes, one.labels).fingerprint != TokenSet(one.codes[:, ::-1], one.labels).fingerprint


@pytest.fixture
def tiny(tmp_path):
    tiny_vqvae().save_pretrained(tmp_path / "vae")
    return tmp_path


def test_the_command(tiny, mixed, caplog):
    """Tokenize, verify, train from the codes; each message a user may meet."""
    made = invoke(
        "tokenize", "--data", mixed, "--vqvae", tiny / "vae", "--out", tiny / "tokens", "--shard-size", 10
    )
    assert made.exit_code == 0, made.output
    assert (
        f"{len(ODD) + len(BROKEN) + 8} images in 2 classes" in made.output
        and "dB PSNR (their mean colours:" in made.output
    )
    assert (
        f"{len(ODD) + 8} images, 2 variants each, 21 codes per variant" in made.output
        and "images/s" in made.output
    )
    assert (
        f"{len(BROKEN) + 1} skipped, all listed in index.json:" in made.output
        and "words.jpg is not an image" in made.output
    )
    assert Image.open(tiny / "tokens" / "reconstruction.png").size == (8 * 18 - 2, 34)
    assert (
        invoke("tokenize", "--verify", "--out", tiny / "tokens").output
        == f"3 shards in {tiny / 'tokens'} have the checksums of the index\n"
    )
    shape = ["--arch", "var", "--depth", 1, "--width", 32, "--num-heads", 2, "--batch-size", 4]
    trained = invoke("train", "--data", tiny / "tokens", "--out", tiny / "run", "--epochs", 1, *shape)
    assert trained.exit_code == 0, trained.output
    direct = invoke(
        "train", "--data", mixed, "--vqvae", tiny / "vae", "--out", tiny / "direct", "--steps", 1, *shape
    )
    assert direct.exit_code == 0, direct.output
    assert f"{len(BROKEN) + 1} skipped, {len(ODD) + 8} images used; all are listed in" in caplog.text
    assert VAR.from_pretrained(tiny / "run" / "model").config.class_names == ("odd", "plain")
    wrong = [
        (
            [
                "train",
                "--data",
                tiny / "tokens",
                "--vqvae",
                "vae-digits",
                "--out",
                tiny / "x",
                "--steps",
                1,
                *shape,
            ],
            "was made with another VQVAE",
        ),
        (
            [
                "train",
                "--data",
                tiny / "tokens",
                "--vqvae",
                tiny / "vae",
                "--out",
                tiny / "y",
                "--steps",
                1,
                "--copies",
                3,
                *shape,
            ],
            "holds 2 variants",
        ),
        (
            ["train-vqvae", "--data", tiny / "tokens", "--out", tiny / "z", "--steps", 1],
            "holds codes, not images; give the images",
        ),
        (
            ["tokenize", "--data", tiny / "tokens", "--vqvae", tiny / "vae", "--out", tiny / "again"],
            "holds codes, not images",
        ),
        (
            ["tokenize", "--data", mixed, "--vqvae", "vae-digits", "--out", tiny / "tokens"],
            "holds codes made with other settings",
        ),
        (["tokenize", "--out", tiny / "tokens"], "--data is missing"),
        (["tokenize", "--data", mixed, "--verify", "--out", tiny / "tokens"], "leave out --data"),
        (["tokenize", "--verify", "--out", tiny / "vae"], "vae is not complete"),
    ]
    for arguments, message in wrong:
        result = invoke(*arguments)
        assert result.exit_code in (1, 2) and message in result.output and "Traceback" not in result.output, (
            result.output
        )


def test_the_command_warns_where_the_vqvae_does_not_fit(tiny, mixed, caplog):
    with caplog.at_level(logging.WARNING):
        invoke("tokenize", "--data", mixed, "--vqvae", tiny / "vae", "--out", tiny / "tokens")
    assert "does not fit these images; look at" in caplog.text
