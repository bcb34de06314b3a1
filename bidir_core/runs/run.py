"""A run folder from the reader's side: its state, its settings, its items, and what those add up to."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from bidir_core.common.errors import UserError
from bidir_core.common.files import Damaged, one_line, open_plain
from bidir_core.common.process import is_alive
from bidir_core.data.items import name_of
from bidir_core.runs.layout import is_locked, is_run_folder_name, run_id, split_folder_name
from bidir_core.runs.read import read_object, tail, what_changed
from bidir_core.runs.records import (
    LIGHT_FIELDS,
    RECORD_FIELDS,
    SCORES,
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

Metric = Literal["acc", "acc_norm"]
METRICS: tuple[Metric, ...] = ("acc", "acc_norm")
# lm-eval scores these by acc only; their acc_norm is null and repeats acc in the macro.
NO_NORM_TASKS = frozenset({"winogrande"})


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
    def modified(self) -> float:
        """When the folder or any of its files last changed (a cache key, with :attr:`id`)."""
        return max(stamp_of(str(self.path))[::2]) / 1e9

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
                scores = [n for n in SCORES if n in SLIM_FIELDS or n in names]
                return joined(read_parquet(self.path / "items.parquet", scores), texts, names)
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


# Records -> ``metrics.json``: accuracy as lm-eval computes it, chance, and the soft score.


def choice_probabilities(ll: pa.ChunkedArray | pa.Array, gold: np.ndarray) -> np.ndarray:
    """Softmax over the choices' log-likelihoods at the gold, per item; NaN where ``ll`` is null."""
    array = ll.combine_chunks() if isinstance(ll, pa.ChunkedArray) else ll
    probability = np.full(len(array), np.nan)
    rows = np.flatnonzero(~array.is_null().to_numpy(zero_copy_only=False))
    if not len(rows):
        return probability
    lengths = np.asarray(array.value_lengths().drop_null())
    values = np.asarray(array.drop_null().flatten(), dtype=np.float64)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    top = np.maximum.reduceat(values, starts)
    total = np.add.reduceat(np.exp(values - np.repeat(top, lengths)), starts)
    probability[rows] = np.exp(values[starts + gold[rows]] - top) / total
    return probability


def n_choices(table: pa.Table) -> np.ndarray:
    """Choices per item; known for error items too, since their token counts are kept."""
    counts = np.zeros(table.num_rows, dtype=np.int64)
    for name in ("ll", "n_continuation_tokens", "continuations"):
        if name in table.column_names:
            column = table.column(name).combine_chunks()
            lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
            counts = np.maximum(counts, lengths)
    return counts


def bools(column: pa.ChunkedArray) -> np.ndarray:
    """A nullable bool column as numpy bool, null being False."""
    return column.combine_chunks().fill_null(False).to_numpy(zero_copy_only=False)


OUTCOME_COLUMNS = ("correct", "correct_norm", "pred", "pred_norm")


def outcomes(table: pa.Table, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Correctness and predicted choice (-1 without one) of each item under a measure.

    Where an item has no acc_norm, and in tasks that lm-eval scores by acc only, acc stands in.
    """

    def columns(correct: str, pred: str) -> tuple[np.ndarray, np.ndarray]:
        choice = table.column(pred).combine_chunks().fill_null(-1).to_numpy(zero_copy_only=False)
        return bools(table.column(correct)), choice.astype(np.int64)

    right, chosen = columns("correct", "pred")
    if metric == "acc":
        return right, chosen
    normed, chosen_normed = columns("correct_norm", "pred_norm")
    has_norm = _has_norm(table)
    return np.where(has_norm, normed, right), np.where(has_norm, chosen_normed, chosen)


def _has_norm(table: pa.Table) -> np.ndarray:
    """Per item whether it has an acc_norm of its own (``data.items.choice_lengths``)."""
    task = table.column("task").to_numpy(zero_copy_only=False)
    has = table.column("correct_norm").is_valid().to_numpy()
    return has & ~np.isin(task.astype(str), list(NO_NORM_TASKS))


def row_accuracy(row: Mapping[str, Any], metric: str) -> float | None:
    """A task's accuracy from its line in ``metrics.json``; acc where it has no normalised one."""
    value = row.get(metric)
    return row.get("acc") if value is None else value


# Beside acc_norm: what a choice's score is divided by, and the column that says how much that is.
BY_COUNT = {"acc_bytes": "continuations", "acc_tokens": "n_continuation_tokens"}


def right_by_count(table: pa.Table, column: str) -> np.ndarray | None:
    """Whether the gold's score per UTF-8 byte (as lm-eval's acc_bytes) or token is the best one.

    Per item; an error item is wrong, and acc stands in where it does for acc_norm. None where the
    records do not keep the column.
    """
    right = bools(table.column("correct"))
    ll = table.column("ll").combine_chunks()
    rows = np.flatnonzero(ll.is_valid().to_numpy(zero_copy_only=False) & _has_norm(table))
    if not len(rows):
        return right
    per_choice, ll = table.column(column).combine_chunks().take(rows), ll.take(rows)
    counts = per_choice.flatten()
    nulls = per_choice.null_count or counts.null_count
    if nulls or per_choice.value_lengths() != ll.value_lengths():
        return None
    if pa.types.is_string(counts.type):
        space = pc.starts_with(counts, " ").cast(pa.int32())
        counts = pc.max_element_wise(pc.subtract(pc.binary_length(counts), space), 1)
    scores = ll.flatten().to_numpy().astype(np.float64) / counts.to_numpy()
    lengths = ll.value_lengths().to_numpy()
    starts = np.cumsum(lengths) - lengths
    best = np.flatnonzero(scores == np.repeat(np.maximum.reduceat(scores, starts), lengths))
    chosen = best[np.searchsorted(best, starts)]  # of equal ones
    right[rows] = chosen - starts == table.column("gold").to_numpy()[rows]
    return right


def compute_metrics(items: pa.Table | Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The part of ``metrics.json`` that the items decide: counts, ``tasks`` and ``macro``.

    An error item counts as wrong. ``acc_stderr`` is lm-eval's sample standard error,
    sqrt(p (1 - p) / (n - 1)). ``chance`` is the mean of 1 / n_choices. ``gold_prob`` averages
    over the scored items. ``macro`` is the unweighted mean over tasks. ``acc_bytes`` and
    ``acc_tokens`` are there where the records keep texts and token counts; like acc_norm they are
    null in a task that has none, where acc stands in.
    """
    table = items if isinstance(items, pa.Table) else to_table(items)
    names = table.column("task").to_numpy(zero_copy_only=False)
    gold = table.column("gold").to_numpy()
    failed = table.column("error").is_valid().to_numpy()
    correct = bools(table.column("correct"))
    has_norm = _has_norm(table)
    normed = np.where(has_norm, bools(table.column("correct_norm")), correct)
    probability = choice_probabilities(table.column("ll"), gold)
    choices = n_choices(table)
    by_count = {name: right_by_count(table, column) for name, column in BY_COUNT.items()}
    tasks: dict[str, dict[str, Any]] = {}
    for task in dict.fromkeys(names.tolist()):
        in_task = names == task
        n = int(in_task.sum())
        scored = in_task & ~failed
        acc = float(correct[in_task].mean())
        normable = bool(has_norm[scored].any())
        acc_norm = float(normed[in_task].mean()) if normable else None
        counts = choices[in_task][choices[in_task] > 0]
        tasks[task] = {
            "n": n,
            "chance": float((1 / counts).mean()) if len(counts) else None,
            "acc": acc,
            "acc_stderr": standard_error(acc, n),
            "acc_norm": acc_norm,
            "acc_norm_stderr": None if acc_norm is None else standard_error(acc_norm, n),
            **{
                name: float(right[in_task].mean()) if normable else None
                for name, right in by_count.items()
                if right is not None
            },
            "gold_prob": float(probability[scored].mean()) if scored.any() else None,
            "n_errors": int((in_task & failed).sum()),
        }
    return {
        "n_items": table.num_rows,
        "n_scored": int((~failed).sum()),
        "n_errors": int(failed.sum()),
        "tasks": tasks,
        "macro": macro(tasks),
    }


def macro(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Unweighted mean over tasks; one without a normalised accuracy contributes its acc there."""

    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return math.fsum(known) / len(known) if known and len(known) == len(values) else None

    rows = list(tasks.values())
    return {
        "acc": mean([row["acc"] for row in rows]),
        "acc_norm": mean([row_accuracy(row, "acc_norm") for row in rows]),
        **{
            name: mean([row_accuracy(row, name) for row in rows])
            for name in BY_COUNT
            if any(name in row for row in rows)
        },
        "chance": mean([row["chance"] for row in rows]),
    }


def standard_error(proportion: float, n: int) -> float | None:
    """lm-eval's standard error of a mean of zeros and ones; None for a single item."""
    return math.sqrt(proportion * (1 - proportion) / (n - 1)) if n > 1 else None


def peak_of(cost: Mapping[str, Any]) -> int | None:
    """GPU memory where there is a GPU, else what the process held."""
    peak = cost.get("peak_memory_bytes")
    if isinstance(peak, dict):
        return peak.get("device") or peak.get("host")
    return cost.get("peak_bytes")
