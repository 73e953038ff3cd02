"""`mvar tokenize`: what it refuses; tests/tokens has what it writes."""

import warnings

from PIL import Image
from safetensors import SafetensorError

from mvar_models.tokens import writer

from command_cases import mvar
from run_cases import make_data


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
