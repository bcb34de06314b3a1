"""Records -> ``metrics.json``: accuracy as lm-eval computes it, chance, and the soft score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bidir_core.runs.records import to_table

Metric = Literal["acc", "acc_norm"]
METRICS: tuple[Metric, ...] = ("acc", "acc_norm")
# lm-eval scores these by acc only; their acc_norm is null and repeats acc in the macro.
NO_NORM_TASKS = frozenset({"winogrande"})


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
