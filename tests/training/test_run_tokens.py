"""A run encodes its images once, finds the codes again, and notices other data."""

import numpy as np
import pytest
import torch
from PIL import Image

from mvar_models.data.source import ImageSource
from mvar_models.distributed import Processes
from mvar_models.tokens.folder import open_data
from mvar_models.tokens.writer import TokenWriter
from mvar_models.training.run_folder import RunFolder
from mvar_models.training.settings import TransformerSettings
from mvar_models.training.transformer_task import open_tokens

from run_cases import make_data
from tiny_models import tiny_vqvae


def at_16(data):
    source = open_data(data)
    return source.at(16) if isinstance(source, ImageSource) else source


@pytest.fixture
def opened(tmp_path):
    make_data(tmp_path)
    settings = TransformerSettings(data=str(tmp_path / "data"), out=str(tmp_path / "run"), vqvae="tiny")
    run = RunFolder.create(settings)

    def open_them(**changes):
        changed = TransformerSettings.from_dict({**settings.to_dict(), **changes})
        return open_tokens(changed, run, Processes(), tiny_vqvae(), at_16(changed.data))

    return open_them


def codes(tokens):
    labels, indices = tokens.batch(np.arange(len(tokens)))
    return torch.cat([labels[:, None], indices], dim=1)


def test_images_are_encoded_once(opened, tmp_path, monkeypatch):
    train, val = opened()
    assert len(train) + len(val) == 16
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "tokens").glob("shard-*")}
    assert written
    monkeypatch.setattr(TokenWriter, "_write_shard", None)
    again, val_again = opened()
    assert torch.equal(codes(train), codes(again))
    assert torch.equal(codes(val), codes(val_again))
    assert train.fingerprint == again.fingerprint


def test_other_images_are_noticed(opened, tmp_path):
    opened()
    file = tmp_path / "data" / "bee" / "3.png"
    before = file.read_bytes()
    Image.new("RGB", (16, 16), "red").save(file)
    with pytest.raises(ValueError, match=r"has changed .*data_fingerprint"):
        opened()
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"has changed .*\(content of the images\)"):
        opened()
    file.write_bytes(before)
    opened()


def test_a_folder_of_codes_is_read(opened, tmp_path):
    train, _ = opened()
    read, _ = opened(data=str(tmp_path / "run" / "tokens"))
    assert torch.equal(codes(train), codes(read))
    with pytest.raises(ValueError, match="9"):
        opened(data=str(tmp_path / "run" / "tokens"), copies=9)


def test_digits_stay_in_memory(tmp_path):
    pytest.importorskip("sklearn")
    settings = TransformerSettings(data="digits", out=str(tmp_path / "run"))
    run = RunFolder.create(settings)
    train, val = open_tokens(settings, run, Processes(), tiny_vqvae(), at_16("digits"))
    assert len(train) > 3 * len(val) - 10 > 0
    assert not (tmp_path / "run" / "tokens").exists()
