"""Run folders, seen from the reader's side: find them, list them, read them.

Nothing here raises because one folder is broken: such a run has state ``corrupt`` and an
``error`` line. Writing is :class:`~bidir_core.run_writer.RunWriter`'s, re-exported here.

``config.json`` holds ``schema``, ``kind`` (eval, finetune, lab, reference), ``stage``,
``created``, ``config`` (the resolved settings), ``packages``, ``git_commit``,
``model_fingerprint``, ``tokenizer_fingerprint``, ``data_fingerprint`` and ``bos_added``.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from bidir_core.custom_task import is_custom_task
from bidir_core.errors import UserError
from bidir_core.metrics import compute_metrics
from bidir_core.records import (
    HEAVY_FIELDS,
    LIGHT_FIELDS,
    RECORD_FIELDS,
    make_record,
    read_jsonl,
    read_one,
    read_parquet,
    to_table,
)
from bidir_core.run_layout import (
    check_name,
    is_read_only,
    is_run_folder_name,
    refuse_if_read_only,
    runs_roots,
    split_folder_name,
    stage_dir_for,
)
from bidir_core.run_writer import RunWriter
from bidir_core.shared_texts import SLIM_FIELDS, joined, joined_one, texts_file
from bidir_core.status import STORED_STATES, State, is_alive

__all__ = [
    "HEAVY_FIELDS",
    "LIGHT_FIELDS",
    "RECORD_FIELDS",
    "Run",
    "RunWriter",
    "compute_metrics",
    "delete_run",
    "find_run",
    "is_read_only",
    "list_runs",
    "make_record",
    "rename_run",
    "runs_roots",
    "stage_dir_for",
]

_ID = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+(/points/[A-Za-z0-9._-]+)?")


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
    def is_partial(self) -> bool:
        """It has items but is not complete: show its numbers as partial."""
        return self.has_items and not (self.path / "metrics.json").exists()

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
        broken = self._broken()
        if broken:
            return broken
        text = self.status.get("error")
        return str(text) if text else None

    @cached_property
    def state(self) -> State:
        """queued, running, done, failed, cancelled, lost (its process died), partial, corrupt."""
        if self._broken():
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
        """The file that holds a sweep's texts for this point of it; None for other runs."""
        return texts_file(self.path, self.config.get("texts"))

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
                f"the items of run '{self.id}' cannot be read: {_line(error)}"
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
                f"the items of run '{self.id}' cannot be read: {_line(error)}"
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
        return [Run(path) for path in sorted(folder.iterdir()) if _looks_like_run(path)]

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

    def _broken(self) -> str | None:
        """What makes the folder unreadable, in one line, or None."""
        for name in ("config.json", "metrics.json", "status.json"):
            file = self.path / name
            try:
                value = json.loads(file.read_text(encoding="utf-8"))
            except FileNotFoundError:
                if name == "config.json":
                    return "config.json is missing"
                continue
            except (OSError, ValueError) as error:
                return f"{name} cannot be read: {_line(error)}"
            if not isinstance(value, dict):
                return f"{name} does not hold a JSON object"
            problem = _check_shape(name, value)
            if problem:
                return f"{name}: {problem}"
        return _parquet_problem(self.path / "items.parquet")


def _check_shape(name: str, value: dict[str, Any]) -> str | None:
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
        return f"items.parquet cannot be read: {_line(error)}"


def _looks_like_run(path: Path) -> bool:
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


def list_runs(roots: Sequence[Path | str] | None = None, *, points: bool = False) -> list[Run]:
    """Every run under the roots, newest first; never raises for a bad folder.

    ``points`` adds the points of lab sweeps. Where two roots hold the same id, the first counts.
    """
    found: dict[str, Run] = {}
    for root in runs_roots() if roots is None else [Path(r) for r in roots]:
        for stage in _folders(root):
            for folder in _folders(stage):
                if not _looks_like_run(folder):
                    continue
                run = Run(folder)
                found.setdefault(run.id, run)
                if points and run.stage == "lab":
                    for point in run.points():
                        found.setdefault(point.id, point)
    return sorted(found.values(), key=lambda run: (run.path.name, run.id), reverse=True)


def _folders(path: Path) -> list[Path]:
    try:
        return [p for p in path.iterdir() if not p.name.startswith(".") and p.is_dir()]
    except OSError:
        return []


def find_run(
    ref: str | Path | Run,
    roots: Sequence[Path | str] | None = None,
    *,
    allow_path: bool = True,
) -> Run:
    """The run that ``ref`` names: its id, a path to its folder, or a unique folder name.

    ``allow_path=False`` for references that come from a URL. Raises UserError if there is none
    or if several match.
    """
    if isinstance(ref, Run):
        return ref
    text = str(ref).strip()
    searched = runs_roots() if roots is None else [Path(r) for r in roots]
    clean = text.strip("/").removeprefix("runs/")
    if _ID.fullmatch(clean) and not set(clean.split("/")) & {".", ".."}:
        for root in searched:
            if _looks_like_run(root / clean):
                return Run(root / clean)
    if allow_path and text and _looks_like_run(Path(text).expanduser()):
        return Run(Path(text).expanduser())
    named = [run for run in list_runs(searched) if run.path.name == text]
    if len(named) == 1:
        return named[0]
    if named:
        ids = ", ".join(run.id for run in named)
        raise UserError(f"'{text}' names {len(named)} runs; say which: {ids}")
    some = next((run.id for run in list_runs(searched)), "stage1_vanilla_eval/20260101-120000")
    raise UserError(
        f"there is no run '{text[:200]}'; give an id such as {some}, or a path to its folder"
    )


def delete_run(run: Run | str) -> None:
    """Remove a run folder. Refused in read-only mode and while the run is being written."""
    found = _changeable(run, "delete")
    # Renamed away first: a half-deleted folder must never look like a run.
    doomed = found.path.with_name(f".deleted-{found.path.name}")
    try:
        found.path.rename(doomed)
        shutil.rmtree(doomed)
    except OSError as error:
        raise UserError(f"cannot delete the run '{found.id}': {_line(error)}") from error


def rename_run(run: Run | str, name: str | None) -> Run:
    """Change the name after the time stamp (None or empty removes it); return the renamed run."""
    found = _changeable(run, "rename")
    stamp = split_folder_name(found.path.name)[0]
    target = found.path.with_name(f"{stamp}_{check_name(name)}" if name else stamp)
    if target == found.path:
        return found
    if target.exists():
        raise UserError(f"cannot rename: the run '{Run(target).id}' exists already")
    try:
        found.path.rename(target)
    except OSError as error:
        raise UserError(f"cannot rename the run '{found.id}': {_line(error)}") from error
    return Run(target)


def _changeable(run: Run | str, action: str) -> Run:
    refuse_if_read_only(f"{action} a run")
    found = Run(find_run(run).path)  # a fresh look at its state
    if found.state in ("running", "queued"):
        raise UserError(f"cannot {action} '{found.id}': it is {found.state}; cancel it first")
    return found


def _line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__
