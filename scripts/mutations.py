"""Change the bytes or the structure of a file as strangers and broken disks do; for fuzz.py."""

from __future__ import annotations

import contextlib
import io
import json
import random
import zipfile
from typing import Any

TOKENS = (
    b"null", b"NaN", b"-1", b"1e999", b"[", b"]" * 50, b"{", b'"', b"\\u0000", b"\xff", b"\0",
    b"\xef\xbb\xbf", b"\r\n", b"9" * 401, b"[" * 100_000, b"../", b"True", b"!!python/object:os.system",
    b"&a", b"*a", b": ",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 99, 10**9, 2**64, 10**25, 1.5, float("nan"), float("inf"), "", "x", "1", "../x",
    "a\0b", [], [1], ["x"], [[]], {}, {"a": 1}, [None] * 5, 1e308, -1e308,
)  # fmt: skip


def mutate(content: bytes, suffix: str, chance: random.Random) -> bytes:
    """Return the content changed, in its structure where it has one that can be read."""
    with contextlib.suppress(Exception):
        if suffix in (".json", ".jsonl") and chance.random() < 0.7:
            if suffix == ".jsonl":
                lines = content.decode().splitlines()
                at = chance.randrange(len(lines))
                lines[at] = _restructured(json.loads(lines[at]), chance)
                return "\n".join([*lines, ""]).encode()
            return _restructured(json.loads(content), chance).encode()
        if suffix == ".yaml" and chance.random() < 0.7:
            lines = content.decode().splitlines()
            at = chance.randrange(len(lines))
            key = lines[at].partition(":")[0]
            lines[at] = chance.choice(
                [f"{key}: {json.dumps(chance.choice(VALUES))}", "", lines[at] * 2, f"x{key}: 1"]
            )
            return "\n".join([*lines, ""]).encode()
        if suffix in (".npz", ".pt", ".pth") and chance.random() < 0.5:
            return _rezipped(content, chance)
    return _scrambled(content, chance)


def _restructured(values: Any, chance: random.Random) -> str:
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
            places.append((value, key))
            if isinstance(inner, dict | list):
                walk(inner)

    if isinstance(values, dict | list):
        walk(values)
    if not places or chance.random() < 0.05:
        return json.dumps(chance.choice(VALUES))
    parent, key = chance.choice(places)
    way = chance.randrange(5)
    if way == 0:
        del parent[key]
    elif way == 1 and isinstance(parent, dict):
        parent["unknown"] = chance.choice(VALUES)
    elif way == 2:
        for _ in range(chance.choice([3, 30, 300])):
            parent[key] = [parent[key]]
    else:
        parent[key] = chance.choice(VALUES)
    return json.dumps(values)


def _rezipped(content: bytes, chance: random.Random) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        chosen = chance.choice(old.namelist())
        for name in old.namelist():
            data = old.read(name)
            way = chance.randrange(4) if name == chosen else -1
            if way == 0:
                continue
            if way == 1:
                data = b"\x93NUMPY\x01\0\x28\x23" + chance.choice([b"-", b"(", b"{", b" "]) * 9000
            elif way >= 2:
                data = _scrambled(data, chance)
            kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
            new.writestr(name, data, chance.choice(kinds) if name.endswith(".npy") else zipfile.ZIP_STORED)
        new.comment = chance.choice([old.comment, b"[" * 60_000, b"\xff"])
    data = bytearray(out.getvalue())
    if chance.random() < 0.3:  # flags, version and method of the entries: encrypted, compression 99
        for signature, before in ((b"PK\x01\x02", 2), (b"PK\x03\x04", 0)):
            at = data.find(signature)
            if at >= 0:
                data[at + before + chance.choice([4, 6, 8])] = chance.choice([1, 99, 255])
    return bytes(data)


def _scrambled(content: bytes, chance: random.Random) -> bytes:
    data = bytearray(content)
    # Half of the places lie in the head, where formats keep what decides.
    at = chance.randrange(min(len(data), 200) if chance.random() < 0.5 else len(data)) if data else 0
    way = chance.randrange(6)
    if way == 0:
        for _ in range(chance.choice([1, 1, 4, 30])):
            if data:
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif way == 1:
        del data[at:]
    elif way == 2:
        data[at:at] = chance.choice(TOKENS)
    elif way == 3:
        token = chance.choice(TOKENS)
        data[at : at + len(token)] = token
    elif way == 4:
        other = chance.randrange(len(data) + 1)
        data[at:at] = data[other : other + chance.choice([4, 40, 400])]
    else:
        data = bytearray(chance.choice([b"", data.decode("latin1").encode("utf-16"), b"\xef\xbb\xbf" + data,
                                        data.replace(b"\n", b"\r\n"), chance.randbytes(64)]))  # fmt: skip
    return bytes(data)
