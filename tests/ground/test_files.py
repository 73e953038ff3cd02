"""Files that appear complete or not at all, and folders that remember the settings they were made with."""

import json
import os
import sys

import pytest

from mvar_models.files import OtherSettings, claim, compare, replacing, write_text


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "file"
    write_text(target, "old")
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_new_file_shows_only_when_complete(tmp_path):
    target = tmp_path / "weights.bin"
    write_text(target, "old")
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
        assert temporary.parent == target.parent, "a rename is atomic on one file system only"
        assert temporary.suffix == target.suffix, "writers choose the format by the suffix"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file modes")
@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600)])
def test_others_may_read_what_the_umask_allows(tmp_path, mask, mode):
    """A temporary file is private, and must not stay so under its new name."""
    before = os.umask(mask)
    try:
        write_text(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_a_folder_is_claimed_once(tmp_path):
    record = tmp_path / "new" / "settings.json"
    claim(record, {"size": 1, "name": "a"}, "codes")
    assert json.loads(record.read_text()) == {"size": 1, "name": "a"}
    written = record.stat().st_mtime_ns
    claim(record, {"name": "a", "size": 1}, "codes")
    assert record.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    "settings, changed",
    [
        ({"size": 2, "name": "a"}, ["size"]),
        ({"name": "b", "size": 2}, ["name", "size"]),
        ({"size": 1}, ["name"]),
        ({"size": 1, "name": "a", "kind": "c"}, ["kind"]),
    ],
)
def test_other_settings_are_named_and_change_nothing(tmp_path, settings, changed):
    record = tmp_path / "settings.json"
    claim(record, {"size": 1, "name": "a"}, "codes")
    before = record.read_bytes()
    with pytest.raises(OtherSettings, match=", ".join(changed)) as error:
        claim(record, settings, "codes")
    assert error.value.changed == changed
    assert str(tmp_path) in str(error.value)
    assert record.read_bytes() == before


def test_equal_settings_compare_in_any_order(tmp_path):
    compare(tmp_path, {"a": 1, "b": [2]}, {"b": [2], "a": 1}, "images")
