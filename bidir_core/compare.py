"""Two runs on the same items: how much accuracy changed, and how sure that is."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bidir_core import effects, stats, words
from bidir_core.compare_notes import notes_of
from bidir_core.errors import UserError
from bidir_core.flips import FLIPS, flip_classes, flips, flips_of
from bidir_core.pairing import (
    METRICS,
    Metric,
    Mismatch,
    PairedItems,
    mismatch_report,
    mismatches,
    pair,
)
from bidir_core.retention import Retention, above_floor_retention
from bidir_core.store import Run, find_run

__all__ = [
    "FLIPS",
    "METRICS",
    "Comparison",
    "Metric",
    "Mismatch",
    "PairedItems",
    "Row",
    "compare",
    "compare_command",
    "flips",
    "flips_of",
    "interaction_of_runs",
    "mismatch_report",
    "mismatches",
    "pair",
]

MACRO = "macro"


@dataclass(frozen=True)
class Row:
    """One task, or ``macro``. Accuracies and differences are fractions; b minus a.

    ``low``/``high``: the 95 % interval of ``delta``. ``p_value``: exact McNemar; ``p_holm``: after
    Holm over the tasks (both None for the macro). ``detectable``: the smallest true difference
    found with 80 % power. Counts of the macro are sums.
    """

    task: str
    n: int
    chance: float
    acc_a: float
    acc_b: float
    delta: float
    low: float
    high: float
    both_right: int
    broken: int
    fixed: int
    both_wrong: int
    changed_wrong: int
    p_value: float | None
    p_holm: float | None
    detectable: float | None
    verdict: stats.Verdict
    words: str

    @property
    def churn(self) -> int:
        return self.broken + self.fixed

    @property
    def estimate(self) -> stats.Estimate:
        return stats.Estimate(self.delta, self.low, self.high, self.n)


@dataclass(frozen=True)
class Comparison:
    """What can be said about run b against run a."""

    run_a: str
    run_b: str
    metric: Metric
    margin: float
    tasks: tuple[Row, ...]
    macro: Row
    sentence: str
    plain_ratio: float | None
    above_chance: Retention
    above_no_context: Retention | None
    n_errors: int
    n_unpaired: int
    intersected: bool
    notes: tuple[str, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """The tasks, then the macro."""
        return (*self.tasks, self.macro)

    @property
    def verdict(self) -> stats.Verdict:
        return self.macro.verdict

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; churn included."""
        value = asdict(self)
        for row, plain in zip(self.tasks, value["tasks"], strict=True):
            plain["churn"] = row.churn
        value["macro"]["churn"] = self.macro.churn
        value["verdict"] = self.verdict
        return {**value, "tasks": list(value["tasks"]), "notes": list(self.notes)}


def compare(
    run_a: Run,
    run_b: Run,
    *,
    metric: str = "acc",
    intersect: bool = False,
    floor: Run | None = None,
    margin: float = stats.MARGIN,
) -> Comparison:
    """Compare run b with run a, paired item by item.

    ``floor``: a no-context (or shuffled-context) run, for the retention above it. ``margin``: how
    small a difference counts as none. Raises UserError for runs that do not pair.
    """
    pairs = pair(run_a, run_b, metric, intersect=intersect)
    rows = _task_rows(pairs, margin)
    macro = _macro_row(rows, margin)
    right_a, right_b = pairs.by_task(pairs.correct_a), pairs.by_task(pairs.correct_b)
    above_no_context = None
    if floor is not None:
        above_no_context = _retention_above_run(pairs, floor)
    return Comparison(
        run_a=run_a.id,
        run_b=run_b.id,
        metric=pairs.metric,
        margin=margin,
        tasks=tuple(rows),
        macro=macro,
        sentence=words.verdict_sentence(
            words.subject(run_a, run_b),
            macro.estimate,
            tasks=pairs.tasks,
            metric=pairs.metric,
            margin=margin,
        ),
        plain_ratio=macro.acc_b / macro.acc_a if macro.acc_a > 0 else None,
        above_chance=above_floor_retention(right_a, right_b, pairs.chance()),
        above_no_context=above_no_context,
        n_errors=pairs.n_errors,
        n_unpaired=pairs.n_unpaired,
        intersected=pairs.intersected,
        notes=tuple(notes_of(pairs)),
    )


def _task_rows(pairs: PairedItems, margin: float) -> list[Row]:
    flip = pairs.by_task(flip_classes(pairs))
    right_a, right_b = pairs.by_task(pairs.correct_a), pairs.by_task(pairs.correct_b)
    chance = pairs.chance()
    tables = {task: stats.table_2x2(right_a[task], right_b[task]) for task in right_a}
    p_values = [stats.mcnemar_exact(t.broken, t.fixed) for t in tables.values()]
    adjusted = stats.holm(p_values)
    rows = []
    for (task, table), p, p_holm in zip(tables.items(), p_values, adjusted, strict=True):
        estimate = stats.paired_interval(table)
        verdict = stats.verdict(estimate, margin=margin)
        if verdict == "different" and p_holm >= 0.05:
            verdict = "undecided"  # one of several tasks: its own interval promises too much
        rows.append(
            Row(
                task=task,
                n=table.n,
                chance=chance[task],
                acc_a=float(right_a[task].mean()),
                acc_b=float(right_b[task].mean()),
                delta=estimate.value,
                low=estimate.low,
                high=estimate.high,
                both_right=table.both_right,
                broken=table.broken,
                fixed=table.fixed,
                both_wrong=table.both_wrong,
                changed_wrong=int((flip[task] == "changed_wrong").sum()),
                p_value=p,
                p_holm=p_holm,
                detectable=stats.smallest_detectable(table.n, stats.smoothed_discordance(table)),
                verdict=verdict,
                words=words.row_words(estimate, verdict, margin=margin),
            )
        )
    return rows


def _macro_row(rows: Sequence[Row], margin: float) -> Row:
    estimate = stats.macro_delta([row.estimate for row in rows])
    tables = [stats.Table2x2(r.both_right, r.broken, r.fixed, r.both_wrong) for r in rows]
    verdict = stats.verdict(estimate, margin=margin)

    def mean(name: str) -> float:
        return float(np.mean([getattr(row, name) for row in rows]))

    def total(name: str) -> int:
        return sum(getattr(row, name) for row in rows)

    return Row(
        task=MACRO,
        n=estimate.n,
        chance=mean("chance"),
        acc_a=mean("acc_a"),
        acc_b=mean("acc_b"),
        delta=estimate.value,
        low=estimate.low,
        high=estimate.high,
        both_right=total("both_right"),
        broken=total("broken"),
        fixed=total("fixed"),
        both_wrong=total("both_wrong"),
        changed_wrong=total("changed_wrong"),
        p_value=None,
        p_holm=None,
        detectable=stats.smallest_detectable_macro(tables),
        verdict=verdict,
        words=words.row_words(estimate, verdict, margin=margin),
    )


def _retention_above_run(pairs: PairedItems, floor: Run) -> Retention:
    """Retention above another run's score on the very items of this pair."""
    third = pair(pairs.run_a, floor, pairs.metric, intersect=True, check_context=False)
    score = dict(zip(zip(third.task, third.doc_id), third.correct_b))
    keys = list(zip(pairs.task, pairs.doc_id))
    known = np.array([key in score for key in keys])
    if not known.any() or set(pairs.task[known]) != set(pairs.tasks):
        raise UserError(f"the floor run '{floor.id}' lacks a task of this comparison")
    right = np.array([score.get(key, False) for key in keys])

    def split(values: np.ndarray) -> dict[str, np.ndarray]:
        return {task: values[known & (pairs.task == task)] for task in pairs.tasks}

    return above_floor_retention(split(pairs.correct_a), split(pairs.correct_b), split(right))


def interaction_of_runs(
    repaired_bidirectional: Sequence[Run],
    control_bidirectional: Sequence[Run],
    repaired_causal: Sequence[Run],
    control_causal: Sequence[Run],
    *,
    metric: str = "acc",
    intersect: bool = False,
) -> effects.Contrast:
    """(3B - 3C under bidirectional) - (3B - 3C under causal); one run per seed in each list.

    All runs must hold the same items; those that any of them could not score are left out.
    """
    arms = (repaired_bidirectional, control_bidirectional, repaired_causal, control_causal)
    if len({len(arm) for arm in arms}) != 1 or not arms[0]:
        raise UserError("the interaction needs the same number of seeds, at least one, in each arm")
    everyone = [run for arm in arms for run in arm]
    first = everyone[0]
    scores: list[dict[tuple[str, int], bool]] = []
    for run in everyone:
        pairs = pair(first, run, metric, intersect=intersect)
        scores.append(dict(zip(zip(pairs.task, pairs.doc_id), pairs.correct_b)))
    common = [key for key in scores[0] if all(key in one for one in scores[1:])]
    if not common:
        raise UserError("the runs of the interaction share no item that all could score")
    task = np.array([key[0] for key in common])
    stacked = np.array([[one[key] for key in common] for one in scores])
    seeds = len(arms[0])

    def arm(number: int) -> Mapping[str, np.ndarray]:
        mine = stacked[number * seeds : (number + 1) * seeds]
        return {name: mine[:, task == name] for name in dict.fromkeys(task.tolist())}

    return effects.interaction(arm(0), arm(1), arm(2), arm(3))


def compare_command(args: argparse.Namespace) -> int:
    """``compare A B``: print a table, or JSON; 0 when done, UserError otherwise.

    Reads ``run_a``, ``run_b``, ``metric``, ``intersect``, ``json``, ``floor`` (a run) and
    ``margin`` (in points).
    """
    if not 0 < args.margin < 100:
        raise UserError(f"--margin {args.margin:g}: give a number of points above 0, such as 1")
    result = compare(
        find_run(args.run_a),
        find_run(args.run_b),
        metric=args.metric,
        intersect=args.intersect,
        floor=find_run(args.floor) if args.floor else None,
        margin=args.margin / 100,
    )
    if args.json:
        print(json.dumps(result.to_json(), indent=1))
    else:
        print(words.comparison_text(result))
    return 0
