"""A report's tables of differences: contrasts, the tests per task, and the interaction."""

from __future__ import annotations

from collections.abc import Sequence

from bidir_core import stats
from bidir_core.pairing import Metric
from bidir_core.reporting.contrast import BASES, Contrast
from bidir_core.reporting.contrasts import interaction
from bidir_core.reporting.markdown import NOT_RUN, Column, Interval, Table
from bidir_core.reporting.study import Study


def contrast_table(contrasts: Sequence[Contrast]) -> Table:
    """One line per contrast: the macro difference and its verdict."""
    table = Table(
        "contrasts",
        [
            Column("Contrast"), Column("n", "count", "-"), Column("Seeds", "count"),
            Column("From", "acc"), Column("To", "acc"), Column("Difference (points)", "points"),
            Column("95 % CI (points)", "interval", "none"),
            Column("Seeds low to high (points)", "interval", "-"), Column("Verdict"),
            Column("Detectable (points)", "points", "-"), Column("Interval"),
        ],
    )  # fmt: skip
    for one in contrasts:
        seeds = Interval(min(one.per_seed), max(one.per_seed)) if one.n_seeds > 1 else None
        table.rows.append([
            f"{one.b} minus {one.a}" + (" (LEAKY)" if one.leaky else ""),
            one.n, max(1, one.n_seeds), one.acc_a, one.acc_b, one.value, Interval.of(one.interval),
            seeds, one.verdict or "unknown", one.detectable, BASES[one.basis],
        ])  # fmt: skip
    return table


def test_table(contrasts: Sequence[Contrast]) -> Table:
    """Churn and McNemar per task; counts are means over seeds, p values by seed."""
    table = Table(
        "mcnemar",
        [
            Column("Contrast"), Column("Task", "code"), Column("n", "count", "-"),
            Column("Difference (points)", "points"), Column("95 % CI (points)", "interval", "-"),
            Column("Broken", "number", "-"), Column("Fixed", "number", "-"),
            Column("Wrong to another wrong", "number", "-"), Column("Churn", "percent", "-"),
            Column("McNemar p", "text", "-"), Column("p after Holm", "text", "-"),
        ],
    )  # fmt: skip
    for one in contrasts:
        for task in one.tasks:
            churn = None
            if task.broken is not None and task.fixed is not None and task.n:
                churn = (task.broken + task.fixed) / task.n
            table.rows.append([
                f"{one.b} minus {one.a}", task.task, task.n, task.delta, Interval.of(task.interval),
                task.broken, task.fixed, task.changed_wrong, churn,
                _p_values(task.p_values), _p_values(task.p_holm),
            ])  # fmt: skip
    return table


def interaction_table(study: Study, metric: Metric, margin: float) -> Table:
    """(arm - control under the regime) - (arm - control, causal), macro and by task."""
    table = Table(
        "interaction",
        [
            Column("Arm"), Column("Control"), Column("Regime", "code"), Column("Task"),
            Column("n", "count", "-"), Column("Interaction (points)", "points", NOT_RUN),
            Column("95 % CI (points)", "interval", "-"), Column("By seed"), Column("Verdict"),
        ],
    )  # fmt: skip
    for arm in study.trained("3B", "distill"):
        found = interaction(study, arm, metric=metric)
        if isinstance(found, str):
            table.rows.append(
                [arm.title, None, study.own_regime(arm), "macro", None, None, None, None, found]
            )
            continue
        value, control = found
        named = {"macro": value.estimate, **value.per_task}
        for task, estimate in named.items():
            macro = task == "macro"
            seeds = ", ".join(f"{100 * one:+.1f}" for one in value.per_seed) if macro else None
            table.rows.append([
                arm.title, control, study.own_regime(arm), task, estimate.n, estimate.value,
                Interval.of(estimate), seeds, stats.verdict(estimate, margin=margin),
            ])  # fmt: skip
    return table


MOST_P_VALUES = 3


def _p_values(values: Sequence[float]) -> str | None:
    """Each seed's; of more than a few the lowest and the highest."""
    shown = ["<0.0001" if p < 0.0001 else f"{p:.4f}" for p in values]
    if len(values) <= MOST_P_VALUES:
        return " / ".join(shown) or None
    low, high = (shown[values.index(end(values))] for end in (min, max))
    return low if low == high else f"{low} to {high}"
