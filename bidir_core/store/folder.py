"""Is a folder a run, and is it whole? Told by its files alone, before anything is read of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bidir_core.run_layout import is_run_folder_name
from bidir_core.status import STORED_STATES


def what_is_wrong(path: Path) -> str | None:
    """What makes the folder unreadable, in one line, or None."""
    for name in ("config.json", "metrics.json", "status.json"):
        file = path / name
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if name == "config.json":
                return "config.json is missing"
            continue
        except (OSError, ValueError) as error:
            return f"{name} cannot be read: {one_line(error)}"
        if not isinstance(value, dict):
            return f"{name} does not hold a JSON object"
        problem = _wrong_shape(name, value)
        if problem:
            return f"{name}: {problem}"
    return _parquet_problem(path / "items.parquet")


def _wrong_shape(name: str, value: dict[str, Any]) -> str | None:
    if value.get("schema") not in (None, 1):
        return f"schema {value['schema']} is newer than this program reads (1)"
    if name == "status.json" and value.get("state") not in STORED_STATES:
        return f"unknown state '{str(value.get('state'))[:40]}'"
    if name == "metrics.json":
        for key in ("tasks", "macro"):
            if key in value and not isinstance(value[key], dict):
                return f"'{key}' is not an object"
        if not all(isinstance(row, dict) for row in value.get("tasks", {}).values()):
            return "'tasks' holds something that is not an object"
    return None


def _parquet_problem(path: Path) -> str | None:
    """A torn table is caught by its end mark, without reading it."""
    try:
        with open(path, "rb") as file:
            if file.seek(0, 2) < 12:
                return "items.parquet is cut short"
            file.seek(-4, 2)
            return None if file.read(4) == b"PAR1" else "items.parquet is cut short or damaged"
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"items.parquet cannot be read: {one_line(error)}"


def is_run_folder(path: Path) -> bool:
    """A folder named like a run or holding config.json; empty ones are just being made."""
    try:
        if path.name.startswith(".") or not path.is_dir():
            return False
        if (path / "config.json").exists():
            return True
        named = is_run_folder_name(path.name)
        return named and any(not p.name.startswith(".") for p in path.iterdir())
    except OSError:
        return False


def one_line(error: BaseException) -> str:
    """What an error says, without the file names and line breaks of its text."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__
