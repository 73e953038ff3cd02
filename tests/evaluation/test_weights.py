"""Files of weights: named, cached, downloaded on request from a stub, or refused in one line."""

import hashlib
from pathlib import Path

import pytest
import torch

from mvar_models.evaluation.features.dinov2 import WEIGHTS as DINOV2
from mvar_models.evaluation.features.inception import STATE_DICT
from mvar_models.evaluation.features.weights import WeightsFile, check_state, find_weights
from mvar_models.files import file_digest

CONTENT = b"not really weights"


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A file that its URL, here a file:// address, delivers; the cache is an empty folder."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    served = tmp_path / "served.pth"
    served.write_bytes(CONTENT)
    return WeightsFile("some", "w.pth", served.as_uri(), hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


def test_a_named_file_comes_first(file, tmp_path):
    named = tmp_path / "mine.pth"
    named.write_bytes(b"anything")
    assert find_weights(file, named) == named
    assert find_weights(file, str(named)) == named
    assert not file.cached.exists()


def test_nothing_is_downloaded_unless_asked(file):
    with pytest.raises(
        FileNotFoundError, match=r"weights: some needs w\.pth; name the file, or say 'download'"
    ):
        find_weights(file, None)
    assert not file.cached.parent.exists()


def test_a_download_is_kept_and_found(file):
    path = find_weights(file, "download")
    assert path == file.cached
    assert path.read_bytes() == CONTENT
    Path(file.url.removeprefix("file://")).unlink()
    assert find_weights(file, None) == find_weights(file, "download") == path


def test_another_file_under_the_url_is_refused_and_not_kept(file):
    Path(file.url.removeprefix("file://")).write_bytes(b"something else")
    with pytest.raises(ValueError, match="is not the expected file"):
        find_weights(file, "download")
    assert list(file.cached.parent.iterdir()) == []


def test_a_failed_download_is_one_line(file):
    Path(file.url.removeprefix("file://")).unlink()
    with pytest.raises(OSError, match=r"could not be downloaded .*; download it yourself") as caught:
        find_weights(file, "download")
    assert "\n" not in str(caught.value)


def test_a_damaged_cache_is_refused(file):
    find_weights(file, "download").write_bytes(CONTENT[:-1])
    for weights in (None, "download"):
        with pytest.raises(ValueError, match="has not the digest"):
            find_weights(file, weights)


def test_a_missing_file_is_named(file, tmp_path):
    for named in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"is no file; some needs w\.pth"):
            find_weights(file, named)


def test_digest_of_a_file(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(bytes(3_000_000))
    assert file_digest(path) == hashlib.sha256(bytes(3_000_000)).hexdigest()


@pytest.mark.parametrize("weights", [STATE_DICT, DINOV2], ids=lambda each: each.features)
def test_what_is_downloaded_has_a_digest_and_a_secure_address(weights):
    assert len(bytes.fromhex(weights.sha256)) == 32
    assert weights.url.startswith("https://")
    assert weights.url.endswith("/" + weights.name)


def test_states_are_checked():
    shapes = {"a": (2,), "b": (1, 3)}
    good = {"a": torch.zeros(2), "b": torch.zeros(1, 3), "more": torch.zeros(1)}
    assert set(check_state(good, shapes, Path("f"), "it")) == {"a", "b"}
    wrong = [
        ({"a": torch.zeros(2)}, "has no b"),
        ({**good, "a": [1.0, 2.0]}, "has no a"),
        ({**good, "a": torch.zeros(3)}, r"a is \[3\] torch.float32, expected \[2\] float"),
        ({**good, "b": torch.zeros(1, 3, dtype=torch.int64)}, r"torch\.int64"),
    ]
    for state, reason in wrong:
        with pytest.raises(ValueError, match=f"f is not it: .*{reason}"):
            check_state(state, shapes, Path("f"), "it")
