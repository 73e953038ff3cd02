"""Write files that appear complete or not at all, hash them, and claim folders among processes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import socket
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from itertools import count as count_from
from pathlib import Path
from typing import Any

from mvar_models.records import read_record

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
    import msvcrt


def _namespace() -> str:
    """Return what process numbers are unique in: containers may share the host's name, not its numbers."""
    try:
        return f"{socket.gethostname()} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux
        return socket.gethostname()


# A temporary file names its machine and process, so that `sweep` can tell what a killed process left.
_MACHINE = f"{zlib.crc32(_namespace().encode()):08x}"
_TEMPORARY = re.compile(rf"\..+\.{_MACHINE}-(\d+)-[0-9a-f]{{8}}(\..*)?")
# Folders that this process wrote into, and so looked for such files.
_swept: set[Path] = set()
_LOCK = ".lock"
# Windows lets nobody read a locked byte, so it is one far behind the holder's name.
_LOCKED_BYTE = 1 << 20


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `path`, flushed to disk, when the block ends without an error."""
    with _temporary(path) as temporary:
        mode = temporary.stat().st_mode & 0o777
        yield temporary
        _flush(temporary)
        os.chmod(temporary, mode)  # some writers replace the file by one of their own
        os.replace(temporary, path)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, as `sha256sum` prints it."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def digest(*parts: str | bytes) -> str:
    """Return 16 hex digits of SHA-256 over the parts."""
    total = hashlib.sha256()
    for part in parts:
        # surrogateescape: names of files need not be valid UTF-8.
        value = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        # The length goes first, so that ("ab", "c") and ("a", "bc") differ.
        total.update(len(value).to_bytes(8, "little") + value)
    return total.hexdigest()[:16]


@contextmanager
def damage_named(name: object, what: str = "no .npz, or is cut off or damaged") -> Iterator[None]:
    """Turn whatever a library raises on a damaged file into one line: ValueError, "NAME is WHAT: reason"."""
    try:
        yield
    # zipfile, its decompressors and NumPy's parser raise some twenty kinds, RecursionError among them.
    except Exception as error:
        # NumPy's MemoryError says how much; Python's parser raises a silent one on too many brackets.
        if isinstance(error, MemoryError) and str(error):
            raise
        if isinstance(error, OSError) and error.filename is not None:
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{name} is {what}: {reason}") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file that appears complete or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def create_text(path: Path, text: str) -> bool:
    """Write a text file unless there is one. Of several processes exactly one writes, and gets True."""
    if path.exists():
        return False
    with _temporary(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        _flush(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links, such as exFAT
            return _create_locked(temporary, path)
    return True


def _create_locked(temporary: Path, path: Path) -> bool:
    while True:
        with suppress(FolderInUse), held(path.parent, "is writing settings"):
            if path.exists():
                return False
            os.replace(temporary, path)
            return True
        time.sleep(0.01)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    folder = path.parent.absolute()
    if folder not in _swept:  # once, since a folder of images may have very many files
        _swept.add(folder)
        sweep(folder)
    temporary = path.with_name(f".{path.name}.{_MACHINE}-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    os.close(handle)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sweep(folder: Path) -> None:
    """Remove the temporary files that killed processes of this machine left in `folder`."""
    for file in folder.glob(".*"):
        temporary = _TEMPORARY.fullmatch(file.name)
        if temporary and not _alive(int(temporary[1])):
            file.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    if os.name != "posix":
        return True  # there is no harmless way to ask
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


class FolderInUse(OSError):
    """Another process holds the folder."""


@contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """Keep every other process that calls this out of `folder` while the block runs.

    The lock is the system's, so it ends with the process that holds it, killed or not. Over NFS it holds
    between hosts, and that of a lost host ends with its lease. A file system without locks keeps nobody out.

    Args:
        folder: The folder, which gets a file `.lock` for the time.
        what: What the holder does there, for the message.

    Raises:
        FolderInUse: another holds it; the message names process and host.
    """
    path = folder / _LOCK
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            _lock(file.fileno())
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                file.seek(0)
                holder = file.read() or "another process"
                file.close()
                raise FolderInUse(f"{folder} is in use: {holder}; wait for it, or stop it") from None
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                file.close()
                raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()  # the last holder removed the file between our opening and our locking it
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} {what}")
        file.flush()
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes no open file; the next holder writes over it
                path.unlink()


def _lock(handle: int) -> None:
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)


def file_names(places: Sequence[str]) -> list[str]:
    """Return a file name for each place, no two alike in any letter case.

    It is the place's last part, with as many parts before it as tell it from the others: a run's model lies
    in a folder called model. Equal places are numbered.
    """
    parts = [
        tuple(re.sub(r"[^\w.@-]+", "-", part) for part in Path(os.path.abspath(place)).parts[1:]) or ("root",)
        for place in places
    ]
    depths = dict.fromkeys(parts, 1)
    while True:
        names = {each: "-".join(each[-depth:]) for each, depth in depths.items()}
        count = Counter(name.casefold() for name in names.values())
        deeper = [
            each for each, name in names.items() if count[name.casefold()] > 1 and depths[each] < len(each)
        ]
        if not deeper:
            return numbered([names[each] for each in parts])
        for each in deeper:
            depths[each] += 1


def file_stem(name: str) -> str:
    """Return a class name, up to its first comma, as a part of a file's name."""
    return re.sub(r"\W+", "-", name.partition(",")[0]).strip("-").lower()[:60]


def numbered(names: Sequence[str]) -> list[str]:
    """Return the names, with a number after each that came before, in whatever letter case."""
    taken: set[str] = set()
    unique = []
    for name in names:
        candidates = chain([name], (f"{name}-{number}" for number in count_from(2)))
        unique.append(next(each for each in candidates if each.casefold() not in taken))
        taken.add(unique[-1].casefold())
    return unique


class SettingsMismatch(ValueError):
    """The folder holds what was made with other settings; `changed` names them."""

    def __init__(self, message: str, changed: list[str]) -> None:
        super().__init__(message)
        self.changed = changed


def claim(record: Path, settings: Mapping[str, Any], what: str) -> None:
    """Make the folder of `record` and note `settings` there, unless it notes some already.

    Of several processes that come at once, one notes its settings and the others compare theirs.

    Raises:
        SettingsMismatch: it holds `what` made with other settings.
    """
    record.parent.mkdir(parents=True, exist_ok=True)
    create_text(record, json.dumps(settings, indent=2) + "\n")
    compare(record.parent, read_record(record, dict[str, Any]), settings, what)


def compare(folder: Path, recorded: Mapping[str, Any], settings: Mapping[str, Any], what: str) -> None:
    """Raise SettingsMismatch if settings differ from those recorded in `folder`; it names them."""
    changed = sorted(key for key in {*recorded, *settings} if recorded.get(key) != settings.get(key))
    if changed:
        told = (
            f"{folder} holds {what} made with other settings ({', '.join(changed)} differ); "
            "use those, or remove the folder"
        )
        raise SettingsMismatch(told, changed)
