"""JSON and YAML from strangers: what is accepted, and one line that names file and key for the rest."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pytest

from mvar_models.records import (
    Figure,
    FileName,
    check_fields,
    read_lines,
    read_record,
    read_text,
    record_of,
    within,
)
from mvar_models.yaml_text import read_yaml


@dataclasses.dataclass(frozen=True)
class Shard:
    ignores_unknown: ClassVar[bool] = True

    file: FileName
    num_images: int = dataclasses.field(metadata={"key": "pictures"})


@dataclasses.dataclass(frozen=True)
class Record:
    count: Annotated[int, within(1, 9)]
    share: float = 0.5
    loss: Figure | None = None
    on: bool = False
    kind: Literal["a", "b"] = "a"
    choice: Literal["red", "blue"] = "red"
    pair: tuple[float, float] = (0.0, 1.0)
    names: Sequence[str] = ()
    either: int | Sequence[int] = 0
    shards: list[Shard] = dataclasses.field(default_factory=list)
    more: Mapping[str, int] = dataclasses.field(default_factory=dict)


def read(path, schema=Record):
    return (
        record_of(read_yaml(path), schema, str(path)) if path.suffix == ".yaml" else read_record(path, schema)
    )


def written(folder: Path, values: Any, name: str = "record.json") -> Path:
    path = folder / name
    content = values if isinstance(values, bytes) else json.dumps(values).encode()
    path.write_bytes(content)
    return path


def test_what_is_right_comes_typed(tmp_path):
    values = {
        "count": 3,
        "share": 1,
        "loss": float("inf"),
        "pair": [1, 2],
        "names": ["x"],
        "either": [1],
        "shards": [{"file": "s", "pictures": 2.0, "of a later version": 1}],
        "more": {"a": 1},
    }
    record = read_record(written(tmp_path, values), Record)
    expected = dict(loss=float("inf"), pair=(1.0, 2.0), names=("x",), either=(1,), more={"a": 1})
    assert record == Record(3, 1.0, **expected, shards=[Shard("s", 2)])
    assert type(record.share) is float and type(record.shards[0].num_images) is int


@pytest.mark.parametrize(
    "change, match",
    [
        ({"count": 0}, "count must be a whole number from 1 to 9, got 0"),
        ({"count": "3"}, "count must be a whole number from 1 to 9, got '3'|count must be .*, got '3'"),
        ({"count": 1.5}, "count must be a whole number.*1.5"),
        ({"count": True}, "count must be a whole number.*True"),
        ({"count": None}, "count must be a whole number.*None"),
        ({"share": float("nan")}, "share must be a finite number, got nan"),
        ({"share": [1]}, r"share must be a number, got \[1\]"),
        ({"loss": "low"}, "loss must be a number.*'low'"),
        ({"on": 1}, "on must be true or false, got 1"),
        ({"kind": "c"}, "kind must be one of 'a', 'b', got 'c'"),
        ({"kind": []}, r"kind must be one of 'a', 'b', got \[\]"),
        ({"choice": "green"}, "choice must be one of 'red', 'blue', got 'green'"),
        ({"pair": [1]}, r"pair must be a list of 2, got \[1\]"),
        ({"names": "abc"}, "names must be a list, got 'abc'"),
        ({"names": ["a", 2]}, r"names\[1\] must be text, got 2"),
        ({"either": "x"}, "either must be a whole number or a list, got 'x'"),
        ({"shards": {}}, r"shards must be a list, got \{\}"),
        ({"shards": [3]}, r"shards\[0\] must be an object with keys, got 3"),
        ({"shards": [{"file": "../x", "pictures": 1}]}, r"shards\[0\].file must be .*name of a file"),
        ({"shards": [{"file": "x"}]}, r"shards\[0\] lacks the entry pictures"),
        ({"more": {"a": "b"}}, "more.a must be a whole number, got 'b'"),
        ({"colour": 1, "age": 2}, "entries this version does not know: age, colour"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(tmp_path, change, match):
    path = written(tmp_path, {"count": 3, **change})
    with pytest.raises(ValueError, match=match) as raised:
        read_record(path, Record)
    assert str(raised.value).startswith(str(path)) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content, match",
    [
        (b"", "not valid JSON"),
        (b"[]", "must be an object"),
        (b"{}", "lacks the entry count"),
        (b"[" * 100_000, "nested too deeply|nested more"),
        (b'{"count": ' + b"[" * 60 + b"]" * 60 + b"}", "nested more than 32 deep"),
        (b'{"count": ' + b"1" * 401 + b"}", "401 digits"),
        (b'{"count": ' + b"1" * 25 + b"}", "too large"),
        (b'{"count": 1e999}', "count must be a whole number"),
        (b'{"count": 1, "count": 2}', "a key twice: 'count'"),
        (b'{"count": 1, "names": ["\\u0000"]}', "characters"),
        (b'{"count": 1, "names": ["\\ud800"]}', "characters"),
        ('{"count": 1}'.encode("utf-16"), "UTF-8"),
        ('{"count": 1}'.encode("utf-16-le"), "UTF-8"),
        (b'{"count": "\xff"}', "UTF-8; byte 11"),
    ],
    ids=range(14),
)
def test_what_is_no_json_of_ours_is_one_line(tmp_path, content, match):
    path = written(tmp_path, content)
    with pytest.raises(ValueError, match=match) as raised:
        read_record(path, Record)
    assert str(raised.value).startswith(str(path)) and len(str(raised.value)) < 500


@pytest.mark.parametrize("name", ["record.json", "record.yaml"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a mark"])
def test_marks_and_line_ends_of_windows(tmp_path, name, mark):
    content = (
        b'{\r\n"count": 3,\r\n"names": ["a"]\r\n}\r\n' if "json" in name else b"count: 3\r\nnames: [a]\r\n"
    )
    assert read(written(tmp_path, mark + content, name)) == Record(3, names=("a",))


@pytest.mark.parametrize(
    "text, match",
    [
        ("count: [", "not valid YAML"),
        ("count: 3\n\tshare: 1", "not valid YAML"),
        ("count: 1\ncount: 2", "a key twice: 'count'"),
        ("count: &a [1]\nnames: *a", "references"),
        ("count: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("count: !!bool maybe", "not valid YAML"),
        ("count: 2020-99-99", "not valid YAML"),
        ("count: 0x" + "f" * 9000, "too large"),
        ("3: 1", "a key must be text, got 3"),
        ("{" * 5000, "not valid YAML"),
        ("count: 2020-01-01", "count must be a whole number"),
        ("- 1", "must be an object"),
    ],
    ids=range(12),
)
def test_yaml_is_read_as_strictly(tmp_path, text, match):
    path = written(tmp_path, text.encode(), "record.yaml")
    with pytest.raises(ValueError, match=match) as raised:
        read(path)
    assert str(raised.value).startswith(str(path)) and "\n" not in str(raised.value)


def test_numbers_of_yaml_as_people_write_them(tmp_path):
    """YAML 1.1 reads 1e-3 as text."""
    path = written(tmp_path, b"count: 3e0\nshare: 1e-3\npair: [-1E3, 2.5e+1]", "record.yaml")
    assert read(path) == Record(3, 0.001, pair=(-1000.0, 25.0))


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with pytest.raises(ValueError, match=r"record.json is larger than 10 bytes"):
        read_text(written(tmp_path, {"count": 3}), 10)


def test_lines_without_the_one_that_a_kill_cut(tmp_path):
    path = written(tmp_path, b'{"count": 1}\r\n{"count": 2}\n{"coun', "lines.jsonl")
    assert read_lines(path, Record) == [Record(1), Record(2)]
    written(tmp_path, b'{"count": 1}\n{"steps": 2}\n', "lines.jsonl")
    with pytest.raises(ValueError, match=r"lines.jsonl: line 2.*steps"):
        read_lines(path, Record)


def test_a_dataclass_made_in_python_checks_itself():
    @dataclasses.dataclass
    class Settings:
        steps: Annotated[int, within(1, 9)]
        out: str = ""
        sides: Sequence[int] = (1,)
        width: int = None  # type: ignore[assignment]

        def __post_init__(self) -> None:
            check_fields(self)

    made = Settings(np.int64(3), Path("a"), range(2))  # type: ignore[arg-type]
    assert (made.steps, made.out, made.sides, made.width) == (3, "a", (0, 1), None)
    assert type(made.steps) is int
    with pytest.raises(TypeError, match=r"steps must be a whole number.*'3'"):
        Settings("3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"steps.*from 1 to 9, got 10"):
        Settings(10)
    with pytest.raises(ValueError, match="very long int"):
        Settings(10**9000)
