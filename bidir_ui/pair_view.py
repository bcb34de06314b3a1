"""The chosen pair on the Overview: verdict, forest plot, table, stage ladder."""

from __future__ import annotations

from typing import Any

import streamlit as st

from bidir_core import compare as core
from bidir_core import plots
from bidir_ui import analysis, fmt, html, story, url, widgets
from bidir_ui.data import RunInfo


def verdict(result: core.Comparison) -> None:
    """The answer in one sentence, with interval and n."""
    html.show(html.div("b b-verdict", fmt.tie(result.sentence)))
    for line in result.notes:
        widgets.note(line[0].upper() + line[1:] + ".")


def forest(result: core.Comparison, key: str) -> str | None:
    """The forest plot; the task a click chose, if any."""
    event: Any = widgets.chart(
        plots.forest(analysis.forest_frame(result)),
        "Paired difference per task with 95 % interval; the table has the numbers.",
        key=key,
        on_select="rerun",
        selection_mode="points",
    )
    points = event["selection"]["points"] if event else []
    return str(points[0]["customdata"][0]) if points else None


def task_table(result: core.Comparison, a: RunInfo, b: RunInfo) -> None:
    """Per task: accuracies, difference, interval, what broke and what was fixed, the test."""
    rows = []
    for row in result.rows:
        task = "" if row.task == core.MACRO else row.task
        query = url.params(a=a.id, b=b.id, task=task, flip="broken~fixed")
        name = html.el(
            "a", fmt.task(row.task), href=url.href("flips", query), target="_self", cls="b-nowrap"
        )
        rows.append(
            (
                name, fmt.count(row.n), fmt.percent(row.acc_a), fmt.percent(row.acc_b),
                fmt.points(row.delta), fmt.interval(row.low, row.high), fmt.count(row.broken),
                fmt.count(row.fixed), fmt.percent(row.churn / row.n), p_value(row.p_holm), short(row.words),
            )
        )  # fmt: skip
    head = (
        "Task", "n", html.join(widgets.dot("grey"), "Baseline"),
        html.join(widgets.dot("blue"), "Candidate"), "Difference", "95 % interval", "▼ Broken",
        "▲ Fixed", "Churn", "p (Holm)", "In words",
    )  # fmt: skip
    html.show(widgets.table(head, rows, total=True, left=(0, 10)))


def short(words: str) -> str:
    """A verdict's words, short enough for a table's cell."""
    return "undecided after Holm" if words.startswith("undecided once") else words


def p_value(value: float | None) -> str:
    if fmt.missing(value):
        return fmt.NONE
    return "< 0.001" if value < 0.001 else fmt.number(value, 3)  # type: ignore[operator]


def ladder(runs: tuple[RunInfo, ...], base: RunInfo, told: story.Story, metric: str) -> None:
    """Every stage of the baseline's model on its items: how much of stage 1 is kept."""
    stages = [
        run
        for run in runs
        if run.is_done and run.has_items and run.model == base.model and run.limit == base.limit
        and run.context == "full" and run.stage != "lab" and run.id != base.id
    ]  # fmt: skip
    stages.sort(key=lambda run: (run.stage, run.regime, run.created))
    base_acc = fmt.percent(base.macro.get(metric))
    rows: list[tuple[object, ...]] = [
        (html.join(base.stage_label, " ", widgets.small(base.regime)), fmt.count(base.n_items), base_acc, "1.000", "100.0 %", fmt.NONE, _published(told, base.stage))
    ]  # fmt: skip
    for run in stages[:12]:
        result = analysis.try_compare(base, run, metric)
        if result is None:
            continue
        kept = result.above_chance
        name = f" · {run.name}" if run.name and run.checkpoint else ""
        rows.append(
            (
                html.join(run.stage_label, " ", widgets.small(run.regime + name)),
                fmt.count(result.macro.n), fmt.percent(result.macro.acc_b),
                fmt.number(result.plain_ratio, 3),
                fmt.percent(kept.value) if kept.value is not None else "not stated",
                f"[{fmt.percent(kept.low)}, {fmt.percent(kept.high)}]" if kept.value is not None else (kept.why_suppressed or fmt.NONE),
                _published(told, run.stage) if run.regime in ("causal", "bidirectional") else fmt.NONE,
            )
        )  # fmt: skip
    head = (
        "Stage", "n", "Macro", "Plain ratio", "Kept above chance", "95 % interval",
        html.join("Published ", widgets.small("acc, ratio")),
    )  # fmt: skip
    html.show(widgets.table(head, rows))
    have = {run.stage for run in stages} | {base.stage}
    if not have & {story.STAGE4, story.NONPREFILL}:
        widgets.note(
            "Stages 3B, 3C and 4 are not run yet: ",
            html.el("code", "python -m bidir_core pipeline --limit 500", cls="b-cmd"),
        )
    widgets.note(
        "Guessing alone keeps much of the plain ratio, so the share kept above chance is the one "
        "to read: (accuracy − chance) / (stage 1 − chance)."
    )


def _published(told: story.Story, stage: str) -> str:
    run, first = told.published.get(stage), told.published.get(story.STAGE1)
    value = run.macro.get("acc") if run else None
    if value is None:
        return fmt.NONE
    base = first.macro.get("acc") if first else None
    return fmt.percent(value) + (f", {fmt.number(value / base, 3)}" if base else "")


def open_flips(task: str, a: RunInfo, b: RunInfo) -> None:
    query = url.params(a=a.id, b=b.id, flip="broken~fixed", task="" if task == core.MACRO else task)
    st.switch_page("pages/flips.py", query_params=query)
