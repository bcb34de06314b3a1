"""A report's tables of accuracies: by cell, by task, and the 2x2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bidir_core.pairing import Metric
from bidir_core.reporting.arms import CAUSAL, Arm
from bidir_core.reporting.contrast import Contrast
from bidir_core.reporting.contrasts import cell_title, items_of
from bidir_core.reporting.markdown import NOT_RUN, Column, Interval, Kind, Table
from bidir_core.reporting.printed import level, task_accuracy
from bidir_core.reporting.study import Cell, Study, ordered_cells

CONDITIONS = {
    "base": ("vanilla causal prefill", "bidirectional prefill, no fine-tuning"),
    "3B": ("3B checkpoint, causal (non-prefill)", "bidirectional prefill after fine-tune"),
    "3C": ("control checkpoint, causal", "control checkpoint, bidirectional prefill"),
    "distill": ("distilled checkpoint, causal", "bidirectional prefill after distillation"),
    "3A": ("LEAKY checkpoint, causal", "LEAKY checkpoint, bidirectional prefill"),
    "unknown": ("checkpoint, causal", "checkpoint, bidirectional prefill"),
}


def macro_table(study: Study, against_base: Mapping[tuple[Arm, str], Contrast]) -> Table:
    """Macro accuracy of every cell, with retention against stage 1."""
    table = Table(
        "macro",
        [
            Column("Stage"), Column("Condition"), Column("Regime", "code"), Column("n", "count"),
            Column("Seeds", "count"), Column("Macro acc", "acc", NOT_RUN),
            Column("95 % CI", "spread", "-"), Column("Seeds low to high", "spread", "-"),
            Column("Macro acc_norm", "acc", "-"), Column("Above chance kept", "retention", "-"),
            Column("Above no context kept", "retention", "-"), Column("Plain ratio", "number", "-"),
        ],
    )  # fmt: skip
    for arm, regime in ordered_cells(study):
        runs = study.runs(arm, regime)
        acc, norm = level(runs, "acc"), level(runs, "acc_norm")
        found = against_base.get((arm, regime))
        spread = acc.spread if acc else None
        table.rows.append([
            cell_title(study, (arm, regime)),
            CONDITIONS[arm.code][regime != CAUSAL],
            regime,
            acc.n if acc else None,
            len(runs),
            acc.value if acc else None,
            Interval(acc.interval.low, acc.interval.high) if acc and acc.interval else None,
            Interval(*spread) if spread else None,
            norm.value if norm else None,
            found.above_chance if found else None,
            found.above_floor if found else None,
            f"{found.ratio:.3f}x" if found and found.ratio is not None else None,
        ])  # fmt: skip
    return table


def seeds_note(study: Study, against_base: Mapping[tuple[Arm, str], Contrast]) -> str | None:
    """Which rows of the macro table keep their share of stage 1 from fewer seeds than they have."""
    fewer: dict[str, list[str]] = {}
    for cell in ordered_cells(study):
        found, of = against_base.get(cell), len(study.runs(*cell))
        if found is not None and found.n_seeds < of:
            fewer.setdefault(items_of(found.n_seeds, of), []).append(cell_title(study, cell))
    if not fewer:
        return None
    rows = "; ".join(f"{said} ({', '.join(cells)})" for said, cells in fewer.items())
    return (
        "Accuracies and their intervals are over all seeds. What is kept of stage 1, the plain "
        f"ratio and the derived lines are {rows}."
    )


def per_task_table(
    study: Study, metric: Metric, cells: Sequence[Cell], contrasts: Sequence[Contrast]
) -> Table:
    """Accuracy per task in these cells (mean over seeds), then the contrasts' deltas."""
    columns = [Column("Task", "code"), Column("n", "count", "-"), Column("Chance", "acc", "-")]
    columns += [Column(cell_title(study, cell), "acc", "-") for cell in cells]
    for one in contrasts:
        kind: Kind = "estimate" if one.basis == "paired" else "points"
        columns.append(Column(f"Delta {one.b} minus {one.a} (points)", kind, "-"))
    table = Table("per_task", columns)
    first = (study.some_run.metrics or {}).get("tasks") or {}
    for task in study.some_run.tasks:
        row: list[Any] = [task, first.get(task, {}).get("n"), first.get(task, {}).get("chance")]
        row += [_cell_accuracy(study, cell, task, metric) for cell in cells]
        for one in contrasts:
            delta = next((t for t in one.tasks if t.task == task), None)
            paired = one.basis == "paired"
            row.append(None if delta is None else delta.interval if paired else delta.delta)
        table.rows.append(row)
    return table


def all_cells_table(study: Study, metric: Metric) -> Table:
    """Accuracy per task of every cell, one line each (means over seeds)."""
    tasks = study.some_run.tasks
    columns = [Column("Stage"), *(Column(task, "acc", "-") for task in tasks)]
    table = Table("per_task_all", columns)
    for cell in ordered_cells(study):
        accuracies = [_cell_accuracy(study, cell, task, metric) for task in tasks]
        table.rows.append([cell_title(study, cell), *accuracies])
    return table


def _cell_accuracy(study: Study, cell: Cell, task: str, metric: Metric) -> float | None:
    found = [task_accuracy(run, task, metric) for run in study.runs(*cell).values()]
    known = [value for value in found if value is not None]
    return mean(known) if known and len(known) == len(found) else None


def two_by_two_table(study: Study, metric: Metric) -> Table:
    """Every arm under its bidirectional regime and under causal; missing cells are said to be."""
    table = Table(
        "two_by_two",
        [
            Column("Arm"), Column("Regime", "code"), Column("Under the regime", "acc", NOT_RUN),
            Column("95 % CI", "spread", "-"), Column("Causal", "acc", NOT_RUN),
            Column("95 % CI (causal)", "spread", "-"), Column("Regime minus causal", "points", "-"),
        ],
    )  # fmt: skip
    for arm in study.arms:
        if arm.code == "3C" or arm == study.base:
            regimes = study.bidirectional_regimes(arm) or [study.regime]
        else:
            regimes = [study.own_regime(arm)]
        for regime in regimes:
            under = level(study.runs(arm, regime), metric)
            causal = level(study.runs(arm, CAUSAL), metric)
            if under is None and causal is None:
                continue
            table.rows.append([
                arm.title, regime, under.value if under else None,
                Interval.of(under.interval) if under else None, causal.value if causal else None,
                Interval.of(causal.interval) if causal else None,
                under.value - causal.value if under and causal else None,
            ])  # fmt: skip
    return table


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
