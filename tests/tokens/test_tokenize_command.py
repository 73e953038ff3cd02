"""`mvar tokenize`: write, verify, train from the codes; each message a user may meet."""

import logging

import pytest
from click.testing import CliRunner
from PIL import Image

from mvar_models import VAR
from mvar_models.cli.main import main

from odd_images import BROKEN, ODD
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
    shards = -(-(len(ODD) + len(BROKEN) + 9) // 10)  # with the empty image and eight plain ones
    assert (
        invoke("tokenize", "--verify", "--out", tiny / "tokens").output
        == f"{shards} shards in {tiny / 'tokens'} have the checksums of the index\n"
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
