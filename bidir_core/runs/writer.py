"""Writing a run folder so that a kill at any moment loses nothing that was recorded."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from bidir_core.common.errors import UserError
from bidir_core.common.files import remove_left_overs, sync_folder, write_json
from bidir_core.common.process import git_commit, package_versions, this_process
from bidir_core.common.progress import RUNS, tell_job
from bidir_core.runs.layout import (
    LAB,
    is_locked,
    new_run_folder,
    refuse_if_read_only,
    run_id,
    run_lock,
    runs_roots,
)
from bidir_core.runs.read import sealed
from bidir_core.runs.records import (
    Key,
    read_jsonl,
    shared_files,
    to_line,
    to_table,
    write_parquet,
    write_slim,
)
from bidir_core.runs.run import Run, compute_metrics

SCHEMA_VERSION = 1
_SYNC_SECONDS = 3.0


def _tell_job(folder: Path) -> None:
    if folder.parent.name != "points":  # a sweep reports for its points
        tell_job(RUNS, str(folder.resolve()))


class RunWriter:
    """The one process that writes a run folder. Use :meth:`create` or :meth:`resume`.

    As a context manager it leaves an honest ``status.json`` whatever happens: ``cancelled`` after
    Ctrl-C, ``failed`` with one line after any other exception. A SIGKILL leaves ``running`` with a
    dead process, which readers show as ``lost``.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        self.config = config
        self._records: dict[Key, dict[str, Any]] = {}
        self._n_right = 0
        self._items: io.FileIO | None = None
        self._synced = time.monotonic()
        self._status: dict[str, Any] = {}
        self._lock = run_lock(path)
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise UserError(
                f"the run '{path.parent.name}/{path.name}' is being written by another process; "
                "wait for it or cancel it first"
            ) from None

    @classmethod
    def create(
        cls,
        stage_dir: str,
        config: Mapping[str, Any],
        *,
        root: Path | str | None = None,
        name: str | None = None,
        folder: Path | None = None,
        state: str = "running",
        **facts: Any,
    ) -> RunWriter:
        """Start a new run folder.

        ``config``: the resolved settings. ``facts`` stand beside them in ``config.json``:
        ``kind`` (default "eval"), ``model_fingerprint``, ``tokenizer_fingerprint``,
        ``data_fingerprint``, ``bos_added`` and whatever else a reader should know. ``folder``
        names the exact folder (a point of a sweep); otherwise it is named by the clock.
        """
        refuse_if_read_only("start a run")
        if folder is None:
            runs = Path(root).expanduser().resolve() if root is not None else runs_roots()[0]
            folder = new_run_folder(runs, stage_dir, name)
        else:
            folder.mkdir(parents=True, exist_ok=True)
        contents = {
            "schema": SCHEMA_VERSION,
            "kind": "eval",
            "stage": stage_dir,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": dict(config),
            "packages": package_versions(),
            "git_commit": git_commit(),
            **facts,
        }
        try:
            write_json(folder / "config.json", contents, dense=_is_dense(contents))
            writer = cls(folder, contents)
        except OSError as error:
            raise UserError(
                f"cannot write the run '{folder}' ({error.strerror or error})"
            ) from error
        writer._set_status(state=state, done=0, total=None, started=time.time())
        _tell_job(folder)
        return writer

    @classmethod
    def resume(cls, run: Path | Any) -> RunWriter:
        """Go on with an unfinished run (a path or a ``Run``); a torn last line is cut off."""
        refuse_if_read_only("resume a run")
        view = run if isinstance(run, Run) else Run(Path(run))
        if view.state == "done":
            raise UserError(f"the run '{view.id}' is already complete; nothing to resume")
        if view.state in ("corrupt", "reference"):
            raise UserError(f"the run '{view.id}' cannot be resumed: {view.error or view.state}")
        writer = cls(view.path, view.config)
        # What killed writers left here and in the points of a sweep, which is ours alone now.
        remove_left_overs(view.path, ".*.tmp", older_than_seconds=0)
        for point in view.path.glob("points/*"):
            if not is_locked(point):
                remove_left_overs(point, ".*.tmp", ".lock", older_than_seconds=0)
        records, n_bytes = read_jsonl(view.path / "items.jsonl")
        writer._remember(records)
        if (view.path / "items.jsonl").exists():
            os.truncate(view.path / "items.jsonl", n_bytes)
        # What the earlier process reported (total, cost, start) stays until there is newer.
        writer._status = {k: v for k, v in view.status.items() if k not in ("rate", "eta_seconds")}
        writer._set_status(state="running", done=len(records), resumed=time.time())
        _tell_job(view.path)
        return writer

    @property
    def recorded(self) -> set[Key]:
        """The (task, doc_id) already on disk: a resumed run skips these."""
        return set(self._records)

    @property
    def is_slim(self) -> bool:
        """A point of a sweep, whose texts are stored once for all points (see shared_texts)."""
        return bool(self.config.get("texts"))

    @property
    def id(self) -> str:
        return run_id(self.path.absolute())

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add finished items. They survive a kill once this returns, a power cut within seconds."""
        fresh = [dict(r) for r in records if (r["task"], r["doc_id"]) not in self._records]
        if self._items is None:
            # Unbuffered: after a full disk no half line waits to be written again.
            self._items = io.FileIO(self.path / "items.jsonl", "a")
            sync_folder(self.path)
        # One write for whole lines: a kill in between tears at most the last line.
        data = memoryview(b"".join(to_line(record) for record in fresh))
        while data:
            data = data[self._items.write(data) :]
        self._remember(fresh)
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            os.fsync(self._items.fileno())
            self._synced = time.monotonic()

    def _remember(self, records: Iterable[dict[str, Any]]) -> None:
        for record in records:
            self._records[record["task"], record["doc_id"]] = record
            self._n_right += bool(record.get("correct"))

    def heartbeat(
        self,
        done: int | None = None,
        total: int | None = None,
        *,
        rate: float | None = None,
        eta_seconds: float | None = None,
        **extra: Any,
    ) -> None:
        """Say that the process lives and how far it is; ``rate`` is items (or steps) a second.

        With it go how many items are recorded, and how many of them are right.
        """
        changes = {"done": done, "total": total, "rate": rate, "eta_seconds": eta_seconds}
        if self._records:
            changes |= {"recorded": len(self._records), "right": self._n_right}
        self._set_status(**{k: v for k, v in changes.items() if v is not None}, **extra)

    def write_probe(self, probe: Mapping[str, Any]) -> None:
        self._write_json("probe.json", dict(probe))

    def finish(
        self,
        *,
        cost: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        order: Iterable[Key] | None = None,
    ) -> dict[str, Any]:
        """Write ``items.parquet``, then ``metrics.json`` last, and return the metrics.

        ``metrics.json`` holds checksums of itself and of the files that are there by then, all but
        status and log; a reader calls the run corrupt where one of them is something else later.

        Items are sorted by ``order`` if given, else by the config's task order and doc_id.
        ``metrics`` replaces what the items would give (fine-tunes and reference runs have none)
        or, beside items, adds to it.
        """
        settings = self.config.get("config", {})
        body: dict[str, Any] = {}
        if self._records:
            table = to_table(self._sorted(order, settings.get("tasks") or []))
            self._close_items()
            write = write_slim if self.is_slim else write_parquet
            write(table, self.path / "items.parquet")
            body = compute_metrics(table)
        contents = {
            "schema": SCHEMA_VERSION,
            "stage": self.config.get("stage"),
            "model": settings.get("model"),
            "regime": settings.get("regime"),
            "split": settings.get("split"),
            "limit": settings.get("limit"),
            **body,
            **dict(metrics or {}),
        }
        if cost is not None:
            contents["cost"] = dict(cost)
        contents = sealed(contents, self.path, shared_files(self.path, self.config.get("texts")))
        self._write_json("metrics.json", contents)
        counted = {"done": len(self._records)} if self._records else {}
        self._set_status(state="done", finished=time.time(), eta_seconds=0, **counted)
        (self.path / "items.jsonl").unlink(missing_ok=True)
        self.close()
        return contents

    def fail(self, error: str, *, state: str = "failed") -> None:
        """Leave the run resumable, with one line that says what stopped it."""
        line = " ".join(str(error).split())[:500]
        self._set_status(state=state, error=line, finished=time.time())
        self.close()

    def cancel(self, reason: str = "cancelled") -> None:
        self.fail(reason, state="cancelled")

    def close(self) -> None:
        """Sync and let go of the folder; the status stays as it is."""
        self._close_items()
        if self._lock.is_locked:
            (self.path / ".lock").unlink(missing_ok=True)
            self._lock.release()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None and self._status.get("state") not in ("done", "cancelled", "failed"):
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            text = str(error) or type(error).__name__
            try:
                self.cancel() if stopped else self.fail(text)
            except OSError:
                self.close()  # a full disk must not hide the first error; readers see "lost"
        else:
            self.close()

    def _sorted(self, order: Iterable[Key] | None, tasks: list[str]) -> list[dict[str, Any]]:
        if order is not None:
            keys = list(dict.fromkeys(order))
            return [self._records[key] for key in keys if key in self._records]
        names = list(dict.fromkeys([*tasks, *sorted({task for task, _ in self._records})]))
        rank = {task: i for i, task in enumerate(names)}
        return [self._records[k] for k in sorted(self._records, key=lambda k: (rank[k[0]], k[1]))]

    def _close_items(self) -> None:
        if self._items is not None:
            items, self._items = self._items, None
            with items:
                os.fsync(items.fileno())

    def _set_status(self, **changes: Any) -> None:
        self._status.update(changes)
        if changes.get("state") in ("queued", "running"):
            self._status.update({**this_process(), "error": None, "finished": None})
        self._status["heartbeat"] = time.time()
        self._write_json("status.json", {"schema": SCHEMA_VERSION, **self._status})

    def _write_json(self, name: str, value: dict[str, Any]) -> None:
        write_json(self.path / name, value, dense=_is_dense(self.config))


def _is_dense(config: Mapping[str, Any]) -> bool:
    """The lab writes many small files, and lists by layer: line breaks would be a third of them."""
    return config.get("stage") == LAB
