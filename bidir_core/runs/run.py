"""A run folder from the reader's side: its state, its settings, its numbers, its items."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from bidir_core.common.errors import UserError
from bidir_core.data.custom import is_custom_task
from bidir_core.runs.layout import is_run_folder_name, split_folder_name
from bidir_core.runs.records import (
    LIGHT_FIELDS,
    RECORD_FIELDS,
    SLIM_FIELDS,
    joined,
    joined_one,
    read_jsonl,
    read_one,
    read_parquet,
    texts_file,
    to_table,
)
from bidir_core.runs.status import STORED_STATES, State, is_alive


class Run:
    """A read view of one run folder. Cheap to make; every file is read when first asked for."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser().absolute()

    def __repr__(self) -> str:
        return f"Run({self.id})"

    @property
    def id(self) -> str:
        """``<stage_dir>/<folder>``, or ``lab/<folder>/points/<slug>``: the same on every machine."""
        parts = self.path.parts
        return "/".join(parts[-4:] if parts[-2] == "points" else parts[-2:])

    @property
    def stage(self) -> str:
        return self.id.split("/")[0]

    @property
    def name(self) -> str | None:
        """What follows the time stamp in the folder's name."""
        return split_folder_name(self.path.name)[1]

    @cached_property
    def config(self) -> dict[str, Any]:
        """``config.json``; empty if it cannot be read (see :attr:`error`)."""
        return self._json("config.json") or {}

    @cached_property
    def status(self) -> dict[str, Any]:
        return self._json("status.json") or {}

    @cached_property
    def metrics(self) -> dict[str, Any] | None:
        """``metrics.json``, or None while the run is not complete."""
        return self._json("metrics.json")

    @cached_property
    def probe(self) -> dict[str, Any] | None:
        return self._json("probe.json")

    @property
    def settings(self) -> dict[str, Any]:
        """The resolved settings the run was started with (``config.json``'s ``config``)."""
        value = self.config.get("config")
        return value if isinstance(value, dict) else {}

    @property
    def model(self) -> str:
        return str(self.settings.get("model") or "")

    @property
    def regime(self) -> str:
        return str(self.settings.get("regime") or "causal")

    @property
    def tasks(self) -> list[str]:
        """The tasks it has scores for or, before that, was asked for."""
        scored = (self.metrics or {}).get("tasks")
        if scored:
            return list(scored)
        asked = [str(task) for task in self.settings.get("tasks") or []]
        return [Path(task).stem if is_custom_task(task) else task for task in asked]

    @property
    def is_reference(self) -> bool:
        """Numbers taken from a publication: no items, nothing to pair."""
        return self.config.get("kind") == "reference"

    @property
    def is_compact(self) -> bool:
        return bool(self.settings.get("compact"))

    @property
    def has_items(self) -> bool:
        return any((self.path / name).exists() for name in ("items.parquet", "items.jsonl"))

    @property
    def created(self) -> datetime | None:
        """UTC, from the folder's name or, for other names, from config.json."""
        stamp = split_folder_name(self.path.name)[0][:15]
        try:
            return datetime.strptime(stamp, "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
        except ValueError:
            pass
        try:
            return datetime.fromisoformat(str(self.config.get("created")))
        except ValueError:
            return None

    @cached_property
    def error(self) -> str | None:
        """One line that says what is wrong with the folder or what stopped the run, or None."""
        text = self.status.get("error")
        return what_is_wrong(self.path) or (str(text) if text else None)

    @cached_property
    def state(self) -> State:
        """queued, running, done, failed, cancelled, lost (its process died), partial, corrupt."""
        if what_is_wrong(self.path):
            return "corrupt"
        if self.is_reference:
            return "reference"
        if self.metrics is not None:
            return "done"
        stored = self.status.get("state")
        if stored == "running":
            return "running" if is_alive(self.status) else "lost"
        if stored in ("queued", "failed", "cancelled"):
            return stored
        return "partial"

    @property
    def modified(self) -> float:
        """When any of its files last changed (a cache key, with :attr:`id`)."""
        names = ("config.json", "status.json", "metrics.json", "items.parquet", "items.jsonl")
        times = []
        for file in (self.path / name for name in names):
            try:
                times.append(file.stat().st_mtime)
            except OSError:
                continue
        return max(times, default=0.0)

    @property
    def is_point(self) -> bool:
        """A point of a lab sweep."""
        return self.path.parent.name == "points"

    @property
    def texts_path(self) -> Path | None:
        """The file that holds what this run shares with others; None for a run that shares nothing."""
        return texts_file(self.path, self.config.get("texts"), self.config.get("texts_in"))

    def items_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The records so far as an arrow table; ``columns`` None means all but texts and tokens."""
        wanted = list(LIGHT_FIELDS if columns is None else columns)
        unknown = [name for name in wanted if name not in RECORD_FIELDS]
        if unknown:
            raise ValueError(f"not fields of a record: {unknown}")
        try:
            if (self.path / "items.parquet").exists():
                if (texts := self.texts_path) is None:
                    return read_parquet(self.path / "items.parquet", wanted)
                own = read_parquet(self.path / "items.parquet", SLIM_FIELDS)
                return joined(own, texts, wanted)
            return to_table(read_jsonl(self.path / "items.jsonl")[0]).select(wanted)
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"the items of run '{self.id}' cannot be read: {one_line(error)}"
            ) from error

    def items(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The records so far; ``columns`` None means all but texts and token lists."""
        return self.items_table(columns).to_pandas()

    def item(self, task: str, doc_id: int) -> dict[str, Any] | None:
        """One whole record, or None. Reads only the part of the file that holds it."""
        try:
            if (self.path / "items.parquet").exists():
                if (texts := self.texts_path) is not None:
                    return joined_one(self.path / "items.parquet", texts, task, doc_id)
                return read_one(self.path / "items.parquet", task, doc_id)
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"the items of run '{self.id}' cannot be read: {one_line(error)}"
            ) from error
        for record in read_jsonl(self.path / "items.jsonl")[0]:
            if (record["task"], record["doc_id"]) == (task, doc_id):
                return {name: record.get(name) for name in RECORD_FIELDS}
        return None

    def points(self) -> list[Run]:
        """The points of a lab sweep, each a run of its own."""
        folder = self.path / "points"
        if not folder.is_dir():
            return []
        return [Run(path) for path in sorted(folder.iterdir()) if is_run_folder(path)]

    def log_tail(self, n_bytes: int = 8000) -> str:
        """The end of ``log.txt``, whole lines, or an empty string."""
        try:
            with open(self.path / "log.txt", "rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - n_bytes))
                data = file.read()
        except OSError:
            return ""
        text = data.decode("utf-8", errors="replace")
        return text if size <= n_bytes else text.partition("\n")[2]

    def _json(self, name: str) -> dict[str, Any] | None:
        try:
            value = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None


# Is a folder a run, and is it whole? Told by its files alone, before anything is read of them.


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
