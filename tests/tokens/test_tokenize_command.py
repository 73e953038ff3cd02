"""`mvar tokenize`: write, verify, train from the codes; each message a user may meet."""

import os
import warnings

import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors import SafetensorError

from mvar_models import VAR
from mvar_models.cli.main import main
from mvar_models.tokens import writer
from mvar_models.tokens.folder import TokenFolder

from command_cases import mvar
from fork_cases import fork_pair
from odd_images import BROKEN, ODD
from run_cases import make_data, run
from tiny_models import tiny_vqvae


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def tiny(tmp_path):
    tiny_vqvae().save_pretrained(tmp_path / "vae")
    return tmp_path


def test_the_command(tiny, mixed, caplog):
    """Tokenize, verify, train from the codes; each message a user may meet."""
    made = invoke(
        "tokenize", "--data", mixed, "--vqvae", tiny / "vae", "--out", tiny / "tokens", "--shard-size", 10,
        "--accept-psnr",
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    assert f"{len(ODD) + len(BROKEN) + 8} images in 2 classes" in made.output and "dB PSNR; " in made.output
    assert (
        f"{len(ODD) + 8} images, 2 variants each, 21 codes per variant" in made.output
        and "images/s" in made.output
    )
    assert (
        f"{len(BROKEN) + 1} skipped, all listed in index.json:" in made.output
        and "words.jpg is not an image" in made.output
    )
    assert Image.open(tiny / "tokens" / "reconstruction.png").size == (8 * 18 - 2, 34)
    shards = -(-(len(ODD) + len(BROKEN) + 9) // 10)  # with the empty image and eight plain ones
    assert (
        invoke("tokenize", "--verify", "--out", tiny / "tokens").output
        == f"{shards} shards in {tiny / 'tokens'} have the checksums of the index\n"
    )
    shape = ["--arch", "var", "--depth", 1, "--width", 32, "--num-heads", 2, "--batch-size", 4]
    trained = invoke("train", "--data", tiny / "tokens", "--out", tiny / "run", "--epochs", 1, *shape)
    assert trained.exit_code == 0, trained.output
    direct = invoke(
        "train",
        "--data",
        mixed,
        "--vqvae",
        tiny / "vae",
        "--out",
        tiny / "direct",
        "--steps",
        1,
        "--accept-psnr",
        *shape,
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


def test_a_vqvae_that_does_not_fit_stops_before_the_folder_has_settings(tiny, mixed):
    """So that the next call may take another."""
    command = ["--data", mixed, "--vqvae", tiny / "vae", "--out", tiny / "out"]
    for name in ("tokenize", "train --steps 1"):
        refused = mvar(name, *command)
        assert refused.exit_code == 1
        assert "dB PSNR, below the 15 dB" in refused.output and "--accept-psnr" in refused.output
        assert [file.name for file in (tiny / "out").iterdir()] == ["reconstruction.png"]


def test_another_resolution_is_for_the_released_vqvae(tmp_path):
    data, out = make_data(tmp_path), tmp_path / "tokens"
    options = ["--data", data / "data", "--vqvae", data / "vae", "--out", out]
    result = mvar("tokenize --resolution 512", *options)
    assert result.exit_code == 1
    assert "16 px" in result.output
    assert "--resolution" in result.output
    assert not out.exists()


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*args, **options):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(writer, "write_shard", full)
    result = mvar("tokenize --data digits --shard-size 8 --out", tmp_path / "tokens")
    assert result.exit_code == 1
    assert "No space left on device" in result.output
    assert isinstance(result.exception, SystemExit)


def test_codes_are_not_encoded_again(tmp_path):
    data, codes = make_data(tmp_path), tmp_path / "a"
    vqvae = ["--vqvae", data / "vae"]
    assert mvar("tokenize --data", data / "data", "--out", codes, *vqvae).exit_code == 0
    result = mvar("tokenize --data", codes, "--out", tmp_path / "b", *vqvae)
    assert result.exit_code == 1
    assert not (tmp_path / "b").exists()


def test_a_large_image_that_is_used_is_no_warning(tmp_path, monkeypatch):
    """The images have 256 pixels: over Pillow's limit for a warning, under that for an error."""
    data = make_data(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with Image.open(next((data / "data").rglob("*.png"))):
            assert [warning.category for warning in seen] == [Image.DecompressionBombWarning]
        result = mvar("tokenize --data", data / "data", "--out", tmp_path / "a", "--vqvae", data / "vae")
    assert result.exit_code == 0, result.output
    assert [warning.category for warning in seen] == [Image.DecompressionBombWarning]


def test_two_processes_share_the_work_if_they_agree(tmp_path):
    """Started with other options, both end before anything is written."""
    data = make_data(tmp_path)
    options = ["tokenize", "--data", data / "data", "--vqvae", data / "vae", "--shard-size", 4]
    for name, batch_sizes in (("other", (4, 5)), ("same", (4, 4))):

        def tokenize(name=name, batch_sizes=batch_sizes):
            size = batch_sizes[int(os.environ["RANK"])]
            run(*options, "--out", tmp_path / name, "--batch-size", size)

        pair = fork_pair(tokenize, [tmp_path / f"{name}-{rank}.txt" for rank in (0, 1)])
        outputs = [process.communicate() for process in pair]
        if name == "other":
            assert "batch_size is 4 on rank 0" in outputs[0], outputs
            assert "Traceback" not in "".join(outputs), outputs
            assert not (tmp_path / name).exists()
        else:
            assert len(TokenFolder(tmp_path / name)) == 16, outputs
            assert all("process" in output for output in outputs), outputs
