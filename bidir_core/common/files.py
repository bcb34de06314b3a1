"""Files that are either whole or absent: temp file in the same folder, fsync, rename, fsync."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is synced and takes its place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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


def sync_folder(folder: Path) -> None:
    """Make a rename or a new file in ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
