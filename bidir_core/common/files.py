"""Files written whole or not at all, and files of unknown origin read within bounds.

Writing: temp file in the same folder, fsync, rename, fsync. Reading: plain files only, so many bytes
at most, and of JSON only what every reader can work with.
"""

from __future__ import annotations

import glob
import io
import json
import math
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bidir_core.common.errors import UserError

MOST_JSON_BYTES = 64 << 20
MOST_JSON_DEPTH = 40


class Damaged(UserError):
    """A file that is there and cannot be used; its text says why, without the file's name."""


def open_plain(path: Path, most_bytes: int | None = None) -> io.BufferedReader:
    """Open a plain file to read; it waits for no pipe and touches no device.

    FileNotFoundError if there is none, Damaged for anything else that is not a readable plain file
    of at most ``most_bytes``.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise Damaged("it is not a plain file")
        # Another kind of file may have taken its place since: that one must not make us wait.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise Damaged(one_line(error)) from error
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or (most_bytes is not None and status.st_size > most_bytes):
        file.close()
        raise Damaged(f"it is larger than {most_bytes} bytes, or not a plain file")
    return file


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """The whole of a plain file; raises as :func:`open_plain`."""
    with open_plain(path, most_bytes) as file:
        try:
            data = file.read(most_bytes + 1)
        except OSError as error:
            raise Damaged(one_line(error)) from error
    if len(data) > most_bytes:  # it grew while it was read
        raise Damaged(f"it is larger than {most_bytes} bytes")
    return data


def read_json(path: Path) -> Any:
    """A JSON file's value, bounded as :func:`parse_json`; raises as :func:`open_plain`."""
    return parse_json(read_bytes(path, MOST_JSON_BYTES))


def parse_json(data: bytes) -> Any:
    """A JSON value: finite numbers, integers of 64 bits, whole characters, limited depth.

    Raises Damaged for anything else: readers would not agree on such a value.
    """
    try:
        value = json.loads(data.decode("utf-8"))
    except RecursionError:
        raise Damaged("it is nested too deeply") from None
    except ValueError as error:
        raise Damaged(one_line(error)) from error
    values = [value]
    for _ in range(MOST_JSON_DEPTH):
        inner: list[Any] = []
        for item in values:
            if isinstance(item, dict):
                inner += item
                inner += item.values()
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str):
                if not item.isascii() and any("\ud800" <= c <= "\udfff" for c in item):
                    raise Damaged("it holds half a character")
            elif isinstance(item, float):
                if not math.isfinite(item):
                    raise Damaged("it holds a number that is not finite")
            elif isinstance(item, int) and abs(item) >= 2**63:
                raise Damaged("it holds a number of more than 64 bits")
        values = inner
        if not values:
            return value
    raise Damaged("it is nested too deeply")


def one_line(error: BaseException) -> str:
    """What an error says, without the file names and line breaks of its text."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__


# Controls but line feed and tab, and the marks that turn the direction of what follows.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def visible(text: object) -> str:
    """Control characters and direction marks as ``\\u001b``: a terminal would obey them."""
    return _UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", str(text))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is synced and takes its place.

    Old temporary files that killed processes left of it are removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    remove_left_overs(path.parent, f".{glob.escape(path.name)}.*.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, value: Any, *, dense: bool = False) -> None:
    """Write JSON atomically, ``dense``: without line breaks and spaces.

    NaN and infinities raise ValueError: no reader should meet them.
    """
    layout: dict[str, Any] = {"separators": (",", ":")} if dense else {"indent": 1}
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, **layout) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_left_overs(folder: Path, *patterns: str, older_than_seconds: float = 3600) -> None:
    """Remove the hidden files and folders of these patterns that a killed process left.

    Only old ones: a process that still works on one, perhaps on another machine, has just touched it.
    """
    for path in [p for pattern in patterns for p in folder.glob(pattern)]:
        try:
            if time.time() - path.lstat().st_mtime < older_than_seconds:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        except OSError:
            continue  # not ours to remove


def sync_folder(folder: Path) -> None:
    """Make a rename or a new file in ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_files(folder: Path) -> None:
    """Make a folder's files, and their names, survive a power cut."""
    for path in folder.iterdir():
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)
