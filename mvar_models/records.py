"""Read JSON and YAML that anybody may have written: typed, bounded, and with errors of one line.

A schema is a dataclass, or any annotation made of bool, int, float, str, None, Literal, lists, tuples,
mappings and dataclasses. `Annotated[int, within(1, 64)]` adds a range. An error names the file, the key, what
was expected and what came.
"""

from __future__ import annotations

import codecs
import collections.abc
import dataclasses
import functools
import json
import math
import numbers
import os
import re
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np

MOST_BYTES = 1 << 26
_DEEPEST = 32
_LARGEST = 1 << 64  # no seed, size or count is larger, and Python refuses to print very long integers
_MARKS_OF_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Must:
    """What else an annotated value must be: "from 1 to 64", and the function that tells."""

    be: str
    holds: Callable[[Any], bool]


def within(least: float, most: float) -> Must:
    """Return the bounds of a number, both included."""
    return Must(f"from {least:,} to {most:,}", lambda value: least <= value <= most)


# A number that need not be finite, such as a loss that diverged; a plain `float` must be.
Figure = Annotated[float, "may be infinite or not a number"]
FileName = Annotated[
    str,
    Must(
        "the name of a file in this folder",
        lambda name: name not in ("", ".", "..") and not {"/", "\\"} & set(name),
    ),
]


def read_record(path: Path, schema: type[T]) -> T:
    """Read a JSON file as `schema`.

    Args:
        path: The file.
        schema: A dataclass or another annotation. Unknown keys are refused, unless the dataclass says
            `ignores_unknown: ClassVar[bool] = True`. A field's `metadata["key"]` is its key, if not its name.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else; one line names the file, the key and what is wrong.
    """
    return record_of(parse_json(read_text(path), str(path)), schema, str(path))


def read_lines(path: Path, schema: type[T]) -> list[T]:
    """Read a file of one JSON value per line; a last line that a kill cut short is left out.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line holds something else; the message names file and line.
    """
    # Not splitlines, which also splits at the rarer separators that JSON allows inside text.
    *lines, _ = read_text(path, 1 << 32).split("\n")
    sources = [f"{path}: line {number}" for number in range(1, len(lines) + 1)]
    return [record_of(parse_json(*pair), schema, pair[1]) for pair in zip(lines, sources)]


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """Read a text of at most `most` bytes in UTF-8, with a byte-order mark or without.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is too large, or no such text.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{path} is larger than {most:,} bytes, too large to be what it is read as")
    if content.startswith(_MARKS_OF_UTF_16) or b"\0" in content[:4096]:
        raise ValueError(f"{path} must be text in UTF-8; it is in UTF-16 or no text, save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} must be text in UTF-8; byte {error.start} is not, save it as UTF-8"
        ) from None


def parse_json(text: str | bytes, source: str) -> Any:
    """Return the values of a JSON text; `source` names it in errors.

    Raises:
        ValueError: it is no JSON, has a key twice, is nested too deeply or holds a number that is too long.
    """
    try:
        return bounded(json.loads(text, object_pairs_hook=_without_twins, parse_int=_parse_int))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not valid JSON: {reason_in_line(error)}") from None


def record_of(values: Any, schema: type[T], source: str) -> T:
    """Convert values to `schema` as `read_record` does; `source` names them in errors.

    Raises:
        ValueError: they are something else.
    """
    try:
        return typing.cast(T, converted(values, schema, ""))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {str(error).strip()}") from None


def check_fields(record: Any) -> None:
    """Convert the fields of a dataclass to what their annotations say; `__post_init__` calls it.

    NumPy's numbers, arrays and tensors become Python's, paths become text and sequences tuples. A field whose
    default is None may be None whatever its annotation.

    Raises:
        TypeError: a field is of another type; the message names it.
        ValueError: a field is out of range.
    """
    schema: Any = type(record)
    for field, hint in _fields(schema):
        value = getattr(record, field.name)
        if value is not None or field.default is not None:
            object.__setattr__(record, field.name, converted(value, hint, field.name))


@functools.cache
def _fields(schema: Any) -> list[tuple[dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(schema, include_extras=True)
    return [(field, hints[field.name]) for field in dataclasses.fields(schema)]


def converted(value: Any, hint: Any, key: str) -> Any:
    """Convert a value to what an annotation says, as `check_fields` does; errors begin with `key`."""
    if hasattr(value, "tolist"):  # arrays and tensors count as the numbers in them
        value = value.tolist()
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _annotated(value, hint, key)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _build(value, hint, key)
    if origin in (typing.Union, types.UnionType):
        return _one_of_several(value, hint, key)
    if origin is Literal and type(value) in map(type, arguments) and value in arguments:
        return value
    if origin is collections.abc.Mapping or origin is dict:
        if isinstance(value, Mapping):
            inside = f"{key}." if key else ""
            return {
                converted(name, arguments[0], f"{inside}{shown(name)}"): converted(
                    entry, arguments[1], f"{inside}{name}"
                )
                for name, entry in value.items()
            }
    elif origin in (collections.abc.Sequence, list, tuple):
        if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
            return _sequence(list(value), hint, key)
    elif hint is bool and isinstance(value, bool | np.bool_):
        return bool(value)
    elif hint is int and _is_number(value) and (isinstance(value, numbers.Integral) or value % 1 == 0):
        return int(value)
    elif hint is float and _is_number(value):
        return _float(value, key)
    elif hint is str and isinstance(value, str | os.PathLike):
        return os.fspath(value)
    elif hint in (None, types.NoneType) and value is None:
        return None
    raise TypeError(f"{key} must be {_words(hint)}, got {shown(value)}")


def _annotated(value: Any, hint: Any, key: str) -> Any:
    base, *rules = typing.get_args(hint)
    if hint == Figure and _is_number(value):
        return _float(value, key, finite=False)
    plain = converted(value, base, key)
    for rule in rules:
        if isinstance(rule, Must) and not rule.holds(plain):
            raise ValueError(f"{key} must be {_words(hint)}, got {shown(value)}")
    return plain


def _one_of_several(value: Any, hint: Any, key: str) -> Any:
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    if value is None and len(kinds) < len(typing.get_args(hint)):
        return None
    if len(kinds) == 1:
        return converted(value, kinds[0], key)
    out_of_range: ValueError | None = None
    for kind in kinds:
        try:
            return converted(value, kind, key)
        except ValueError as error:
            out_of_range = out_of_range or error
        except TypeError:
            continue
    if out_of_range is not None:
        raise out_of_range
    raise TypeError(f"{key} must be {_words(hint)}, got {shown(value)}")


def _sequence(values: list[Any], hint: Any, key: str) -> Any:
    kinds = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and kinds[-1] is not Ellipsis:
        if len(values) != len(kinds):
            raise TypeError(f"{key} must be {_words(hint)}, got {shown(values)}")
    else:
        kinds = (kinds[0],) * len(values)
    entries = [
        converted(value, kind, f"{key}[{index}]") for index, (value, kind) in enumerate(zip(values, kinds))
    ]
    return entries if typing.get_origin(hint) is list else tuple(entries)


def _build(value: Any, schema: Any, key: str) -> Any:
    if type(value) is schema:
        return value
    if not isinstance(value, Mapping):
        raise TypeError(f"{key} must be {_words(schema)}, got {shown(value)}")
    inside = f"{key}." if key else ""
    fields = {field.metadata.get("key", field.name): (field, hint) for field, hint in _fields(schema)}
    unknown = sorted(str(name) for name in value if name not in fields)
    if unknown and not getattr(schema, "ignores_unknown", False):
        raise ValueError(f"{key} has entries this version does not know: {', '.join(unknown)[:200]}")
    missing = [
        name
        for name, (field, _) in fields.items()
        if name not in value
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{key} lacks the entry {', '.join(missing)}")
    given = {
        field.name: converted(value[name], hint, f"{inside}{name}")
        for name, (field, hint) in fields.items()
        if name in value and not (value[name] is None and field.default is None)
    }
    return schema(**given)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _float(value: Any, key: str, finite: bool = True) -> float:
    number = float(value) if abs(value) <= _LARGEST or isinstance(value, float) else math.inf
    if finite and not math.isfinite(number):
        raise ValueError(f"{key} must be a finite number, got {shown(value)}")
    return number


def _words(hint: Any) -> str:
    """Return what an annotation asks for, in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return " ".join(
            [_words(arguments[0]), *(rule.be for rule in arguments[1:] if isinstance(rule, Must))]
        )
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_words, arguments))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments)) if len(arguments) > 1 else repr(arguments[0])
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)}"
    if origin in (collections.abc.Sequence, list, tuple):
        return "a list"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return "null" if hint in (None, types.NoneType) else words.get(hint, "an object with keys")


def shown(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # an integer of thousands of digits
        return f"a very long {type(value).__name__}"


def reason_in_line(error: Exception) -> str:
    """Return the reason in one line of bounded length."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return " ".join(str(error).split())[:200] or type(error).__name__


def bounded(value: Any, depth: int = 0) -> Any:
    """Return a value read from a file, or raise ValueError where no record of ours would be like it."""
    if depth > _DEEPEST:
        raise ValueError(f"it is nested more than {_DEEPEST} deep")
    if isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise ValueError(f"a key must be text, got {shown(key)}")
            bounded(key)
            bounded(entry, depth + 1)
    elif isinstance(value, list):
        for entry in value:
            bounded(entry, depth + 1)
    elif isinstance(value, int) and abs(value) > _LARGEST:
        raise ValueError(f"a number of {value.bit_length()} bits is too large")
    elif isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
        raise ValueError(f"a text has characters that no text has: {shown(value)}")
    return value


def _parse_int(digits: str) -> int:
    if len(digits) > 30:
        raise ValueError(f"a number of {len(digits)} digits is too large")
    return int(digits)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has a key twice: {shown(next(n for n in names if names.count(n) > 1))}")
    return values
