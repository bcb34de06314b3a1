"""A run folder from the reader's side: its state, its settings, its numbers, its items."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from bidir_core.common.errors import UserError
from bidir_core.common.files import Damaged, one_line, open_plain
from bidir_core.common.process import is_alive
from bidir_core.data.tasks import name_of
from bidir_core.runs.layout import is_locked, is_run_folder_name, run_id, split_folder_name
from bidir_core.runs.read import read_object, tail, what_changed
from bidir_core.runs.records import (
    LIGHT_FIELDS,
    RECORD_FIELDS,
    SLIM_FIELDS,
    joined,
    joined_one,
    read_jsonl,
    read_one,
    read_parquet,
    shared_files,
    texts_file,
    to_table,
)
from bidir_core.runs.shapes import BY_FILE, State


class Run:
    """A read view of one run folder. Cheap to make; every file is read when first asked for."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser().absolute()

    def __repr__(self) -> str:
        return f"Run({self.id})"

    @property
    def id(self) -> str:
        """``<stage_dir>/<folder>``, or ``lab/<folder>/points/<slug>``: the same on every machine."""
        return run_id(self.path)

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
        return self._files[0].get("config.json", {})

    @cached_property
    def status(self) -> dict[str, Any]:
        return self._files[0].get("status.json", {})

    @cached_property
    def metrics(self) -> dict[str, Any] | None:
        """``metrics.json``, or None while the run is not complete."""
        return self._files[0].get("metrics.json")

    @cached_property
    def probe(self) -> dict[str, Any] | None:
        return self._files[0].get("probe.json")

    @property
    def settings(self) -> dict[str, Any]:
        """The resolved settings the run was started with (``config.json``'s ``config``)."""
        return self.config.get("config") or {}

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
        requested = [str(task) for task in self.settings.get("tasks") or []]
        return list(map(name_of, requested))

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
        return self._files[1] or self.status.get("error") or None

    @cached_property
    def state(self) -> State:
        """queued, running, done, failed, cancelled, lost (its process died), partial, corrupt."""
        if self._files[1]:
            return "corrupt"
        if self.is_reference:
            return "reference"
        if self.metrics is not None:
            return "done"
        stored = self.status.get("state")
        if stored == "running":
            is_running = is_locked(self.path) or is_alive(self.status)
            return "running" if is_running else "lost"
        if stored in ("queued", "failed", "cancelled"):
            return stored
        return "partial"

    @property
    def stamp(self) -> tuple[int, ...]:
        """See :func:`stamp_of`."""
        return stamp_of(str(self.path))

    @property
    def modified(self) -> float:
        """When the folder or any of its files last changed (a cache key, with :attr:`id`)."""
        return max(self.stamp[::2]) / 1e9

    @property
    def is_point(self) -> bool:
        return self.path.parent.name == "points"

    @property
    def texts_path(self) -> Path | None:
        """The file that holds what this run shares with others; None for a run that shares nothing."""
        return texts_file(self.path, self.config.get("texts"), self.config.get("texts_in"))

    def items_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The records so far as an arrow table; ``columns`` None means all but texts and tokens."""
        names = list(LIGHT_FIELDS if columns is None else columns)
        unknown = [name for name in names if name not in RECORD_FIELDS]
        if unknown:
            raise ValueError(f"not fields of a record: {unknown}")
        self.refuse_if_corrupt()
        try:
            if (self.path / "items.parquet").exists():
                if (texts := self.texts_path) is None:
                    return read_parquet(self.path / "items.parquet", names)
                slim = read_parquet(self.path / "items.parquet", SLIM_FIELDS)
                return joined(slim, texts, names)
            return to_table(read_jsonl(self.path / "items.jsonl")[0]).select(names)
        except (OSError, Damaged) as error:
            raise self._items_unreadable(error) from error

    def items(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The records so far; ``columns`` None means all but texts and token lists."""
        return self.items_table(columns).to_pandas()

    def item(self, task: str, doc_id: int) -> dict[str, Any] | None:
        """One whole record, or None. Reads only the part of the file that holds it."""
        self.refuse_if_corrupt()
        try:
            if (self.path / "items.parquet").exists():
                if (texts := self.texts_path) is not None:
                    return joined_one(self.path / "items.parquet", texts, task, doc_id)
                return read_one(self.path / "items.parquet", task, doc_id)
            for record in read_jsonl(self.path / "items.jsonl")[0]:
                if (record["task"], record["doc_id"]) == (task, doc_id):
                    return to_table([record]).to_pylist()[0]
        except (OSError, Damaged) as error:
            raise self._items_unreadable(error) from error
        return None

    def points(self) -> list[Run]:
        folder = self.path / "points"
        if not folder.is_dir():
            return []
        return [Run(path) for path in sorted(folder.iterdir()) if is_run_folder(path)]

    def log_tail(self, n_bytes: int = 8000) -> str:
        """The end of ``log.txt``, whole lines, or an empty string."""
        return tail(self.path / "log.txt", n_bytes)

    @cached_property
    def _files(self) -> tuple[dict[str, dict[str, Any]], str | None]:
        """What its JSON files hold, and what is wrong with the folder, in one line, or None."""
        files: dict[str, dict[str, Any]] = {}
        wrong: list[str] = []
        for name in BY_FILE:
            try:
                files[name] = read_object(self.path, name)
            except FileNotFoundError:
                if name == "config.json":
                    wrong.append("config.json is missing")
            except Damaged as error:
                wrong.append(str(error))
        wrong += filter(None, [_parquet_problem(self.path / "items.parquet")])
        if not wrong:
            config = files["config.json"]
            shared = shared_files(self.path, config.get("texts"), config.get("texts_in"))
            changed = what_changed(self.path, files.get("metrics.json", {}), shared)
            wrong += filter(None, [changed])
        return files, wrong[0] if wrong else None

    def refuse_if_corrupt(self) -> None:
        """UserError, with what is wrong, if the folder is corrupt."""
        if self.state == "corrupt":
            raise UserError(f"the run '{self.id}' is corrupt: {self.error}")

    def _items_unreadable(self, error: Exception) -> UserError:
        return UserError(f"the items of run '{self.id}' cannot be read: {one_line(error)}")


def _parquet_problem(path: Path) -> str | None:
    """A torn table is caught by its end mark, without reading it."""
    try:
        with open_plain(path) as file:
            if file.seek(0, 2) < 12:
                return "items.parquet is cut short"
            file.seek(-4, 2)
            return None if file.read(4) == b"PAR1" else "items.parquet is cut short or damaged"
    except FileNotFoundError:
        return None
    except (OSError, Damaged) as error:
        return f"items.parquet cannot be read: {one_line(error)}"


def stamp_of(path: str) -> tuple[int, ...]:
    """Changes whenever a run's folder or one of the files that say what the run is does.

    Writing one of those replaces it, which changes the folder; an edit in place the file.
    """
    stamps: list[int] = []
    for name in ("", "config.json", "status.json", "metrics.json", "items.parquet", "items.jsonl"):
        try:
            info = os.stat(f"{path}/{name}")
            stamps += (info.st_mtime_ns, info.st_size)
        except (OSError, ValueError):
            stamps += (0, 0)
        if name == "items.parquet" and stamps[-1]:
            break  # then nobody reads the lines
    return tuple(stamps)


def is_run_folder(path: Path | str) -> bool:
    """A folder named like a run or holding config.json; empty ones are just being made."""
    name = os.path.basename(path)
    if name.startswith("."):
        return False
    if os.path.exists(f"{path}/config.json"):
        return True
    try:
        return is_run_folder_name(name) and any(n[0] != "." for n in os.listdir(path))
    except (OSError, ValueError):
        return False
