"""Writing a folder of codes: the same bytes whoever writes, continued after a kill, refused where it does not
fit.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from mvar_models import files
from mvar_models.data.open import open_images
from mvar_models.distributed import Processes
from mvar_models.files import SettingsMismatch
from mvar_models.tokens.folder import TokenFolder
from mvar_models.tokens.writer import TokenWriter

from odd_images import ODD, fill
from progress_cases import recorded
from tiny_models import tiny_vqvae
from token_folders import contents, write

ROOT = Path(__file__).parents[2]


def test_processes_write_the_same_bytes(digits, tmp_path):
    settings = {"shard_size": 300}
    write(digits, tmp_path / "one", batch_size=64, writer=settings)
    done = [
        write(digits, tmp_path / "three", batch_size=64, writer=settings, processes=Processes(rank, 3))
        for rank in (2, 0, 1)
    ]
    assert [written.complete for written in done] == [False, False, True]
    assert sum(written.made for written in done) == len(digits)
    assert all(written.made for written in done), "each process should have a share"
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


_KILLED = """
import sys
from pathlib import Path
from mvar_models.data.digits import Digits
from mvar_models.tokens.writer import TokenWriter
from tiny_models import tiny_vqvae
TokenWriter(tiny_vqvae(), Digits(16), Path(sys.argv[1]), shard_size=100).write(batch_size=10)
"""


def test_after_a_kill_only_missing_shards_are_computed(digits, tmp_path):
    write(digits, tmp_path / "straight", batch_size=10, writer={"shard_size": 100})
    folder = tmp_path / "killed"
    path = os.pathsep.join([str(ROOT / "tests" / "support"), str(ROOT)])
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(folder)], env={**os.environ, "PYTHONPATH": path}
    )
    while len(list(folder.glob("shard-*.json"))) < 3:
        assert process.poll() is None, "it should still be at work"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder / f".shard-00009.npy.{files._MACHINE}-{process.pid}-01234567.npy").write_bytes(b"cut")
    alive = folder / f".shard-00009.npy.{files._MACHINE}-{os.getpid()}-01234567.npy"
    alive.write_bytes(b"of another thread")
    records = list(folder.glob("shard-*.json"))
    kept = {record.with_suffix(".npy"): record.with_suffix(".npy").stat().st_mtime_ns for record in records}
    assert 3 <= len(kept) < 18
    assert not (folder / "index.json").exists()
    with pytest.raises(ValueError, match="killed is not complete; run the `mvar tokenize` command"):
        TokenFolder(folder)
    written = write(digits, folder, batch_size=10, writer={"shard_size": 100})
    assert written.complete
    assert written.made == len(digits) - 100 * len(kept)
    assert all(shard.stat().st_mtime_ns == when for shard, when in kept.items())
    alive.unlink()  # and not missing
    assert contents(folder) == contents(tmp_path / "straight")


def edited(data, kind):
    """Change images in place: to the same pixels, or to others of the same size to the byte."""
    for file in (data / "blue").iterdir():
        if kind == "edited":
            Image.new("RGB", (24, 24), "yellow").save(file)
        os.utime(file, (2e9, 2e9))


@pytest.fixture
def photos(tmp_path):
    for name in ("blue", "red"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(4):
            Image.new("RGB", (24, 24), name).save(tmp_path / "photos" / name / f"{index}.bmp")
    return tmp_path / "photos"


@pytest.mark.parametrize("kind", ["edited", "copied"])
def test_codes_of_images_that_were_changed_in_place_are_not_kept(photos, tmp_path, kind, caplog):
    """Refused where they are finished, since runs may know them; computed again where they are not."""
    settings = {"shard_size": 3}
    for name, options in (("finished", {}), ("begun", {"processes": Processes(0, 2)})):
        write(open_images(photos, 16), tmp_path / name, writer=settings, **options)
        assert not write(open_images(photos, 16), tmp_path / "finished", writer=settings).made
    before = TokenFolder(tmp_path / "finished").fingerprint
    assert not caplog.records, "untouched images are not read again"
    edited(photos, kind)
    if kind == "edited":
        with pytest.raises(
            SettingsMismatch, match=r"have changed since.* 2 shards \(shard-00000.npy, .*00001"
        ) as error:
            write(open_images(photos, 16), tmp_path / "finished", writer=settings)
        assert error.value.changed == ["content of the images"]
        (tmp_path / "finished" / "index.json").unlink()
    made = [
        write(open_images(photos, 16), tmp_path / name, writer=settings).made
        for name in ("finished", "begun")
    ]
    write(open_images(photos, 16), tmp_path / "fresh", writer=settings)
    fresh, *others = (
        [path.read_bytes() for path in sorted((tmp_path / name).glob("*.npy"))]
        for name in ("fresh", "finished", "begun")
    )
    assert others == [fresh, fresh]
    if kind == "edited":
        assert made == [6, 6], "shard 2 of each is of red images alone, and begun had shards 0 and 2"
        assert "shard-00000.npy: its images have changed since; it is recomputed" in caplog.text
        assert TokenFolder(tmp_path / "finished").fingerprint != before, "a run of the old codes must notice"
    else:
        assert made == [0, 3]
        assert "written again since they were encoded, or are a copy; comparing their bytes" in caplog.text
        assert TokenFolder(tmp_path / "finished").fingerprint == before
    caplog.clear()
    assert not write(open_images(photos, 16), tmp_path / "finished", writer=settings).made
    assert not caplog.records, "a copy is read once"


def test_a_damaged_shard_of_an_unfinished_folder_is_recomputed(digits, tmp_path, caplog):
    settings = {"shard_size": 600}
    write(digits, tmp_path / "straight", batch_size=64, writer=settings)
    folder = tmp_path / "damaged"
    write(digits, folder, batch_size=64, writer=settings, processes=Processes(0, 2))
    shard = folder / "shard-00000.npy"
    content = bytearray(shard.read_bytes())
    content[-500] ^= 1
    shard.write_bytes(content)
    (folder / "shard-00002.npy").write_bytes(content[:100])
    with caplog.at_level(logging.WARNING):
        assert write(digits, folder, batch_size=64, writer=settings).made == len(digits)
    messages = [record.getMessage() for record in caplog.records]
    assert any("shard-00000.npy is damaged" in message for message in messages)
    assert any("shard-00002.npy is damaged" in message for message in messages)
    assert contents(folder) == contents(tmp_path / "straight")


def test_damaged_shards_of_a_finished_folder_are_recomputed_as_its_error_says(digits, tmp_path):
    folder = tmp_path / "tokens"
    write(digits, folder, batch_size=64, writer={"shard_size": 600})
    before = contents(folder)
    (folder / "shard-00001.npy").unlink()
    (folder / "index.json").unlink()
    assert write(digits, folder, batch_size=64, writer={"shard_size": 600}).made == 600
    assert contents(folder) == before


def test_another_vqvae_other_data_or_settings_are_refused(mixed, digits, tmp_path):
    folder = tmp_path / "tokens"
    write(open_images(mixed, 16), folder)
    other = tiny_vqvae()
    with torch.no_grad():
        other.quantizer.codebook.weight[0, 0] += 1
    with pytest.raises(ValueError, match=r"other settings \(vqvae_identity differ\)"):
        write(open_images(mixed, 16), folder, other)
    with pytest.raises(
        ValueError,
        match=r"other settings \(class_names, data_.*, mirror_safe, num_variants differ\)",
    ):
        write(digits, folder)
    assert not write(open_images(mixed, 16), folder).made, "nothing is left to do"
    write(open_images(mixed, 16), tmp_path / "begun", processes=Processes(1, 2))
    with pytest.raises(ValueError, match=r"begun .*other settings \(num_variants differ\)"):
        write(open_images(mixed, 16), tmp_path / "begun", writer={"num_variants": 1})


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"writer": {"num_variants": 65}}, "copies must be between 1 and 64 .*, got 65"),
        ({"writer": {"shard_size": 0}}, "shard_size must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_wrong_numbers_are_refused(digits, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        write(digits, tmp_path, **settings)


def test_a_class_without_a_readable_image_is_named(tmp_path):
    folder = fill(tmp_path / "mixed")
    for name in ODD:
        (folder / "odd" / name).unlink()
    with pytest.raises(ValueError, match=r"class 'odd' .*\(8 tried; .*bomb.png"):
        write(open_images(folder, 16), tmp_path / "tokens")
    assert not (tmp_path / "tokens" / "index.json").exists()


def test_progress_is_reported_in_images(digits, tmp_path):
    writer = TokenWriter(tiny_vqvae(), digits, tmp_path, shard_size=600)
    with recorded() as meters:
        writer.write(Processes(1, 2), batch_size=256)
    assert [(meter.title, meter.total, meter.seen) for meter in meters] == [
        ("encoding", 600, [256, 512, 600])
    ]
