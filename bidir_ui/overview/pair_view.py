"""The chosen pair on the Overview: verdict, forest plot, table, stage ladder."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from bidir_core.analyse import compare as core
from bidir_core.analyse.effects import Retention
from bidir_core.analyse.pairing import Metric
from bidir_core.analyse.verdict import Judgement
from bidir_core.common.errors import UserError
from bidir_core.report import plots
from bidir_core.runs.layout import STAGE1
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.reading import analysis, data, pair, seeds, story
from bidir_ui.reading.data import RunInfo


def compared(page: Any) -> core.Comparison | None:
    """The chosen pair's comparison; None where there is none, which :func:`answer` explains."""
    a, b, metric = page.pair.a, page.pair.b, page.pair.metric
    if not page.pair.complete or a is None or b is None:
        return None
    return analysis.try_compare(a, b, metric, intersect=analysis.intersecting())


def answer(page: Any, cls: str = "") -> core.Comparison | None:
    """Who is compared with whom, and the answer; or why there is none, and what to do."""
    html.show(html.el("h2", "The chosen pair", cls=f"b-h2 {cls}"))
    pair.line(page.pair)
    a, b = page.pair.a, page.pair.b
    if not pair.explain_if_missing(page.runs, page.pair) or a is None or b is None:
        return None
    try:
        result = analysis.compare(a, b, page.pair.metric, intersect=analysis.intersecting())
    except UserError as error:
        analysis.offer_intersection(error)
        return None
    analysis.remarks(a, b)
    verdict(result)
    return result


def verdict(result: core.Comparison) -> None:
    """The answer in one sentence, with interval and n."""
    html.show(html.div("b b-verdict", fmt.tie(result.sentence)))
    for line in result.notes:
        widgets.note(fmt.tie(line[0].upper() + line[1:] + "."))


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


TASK_HEAD = (
    "Task",
    "n",
    html.join(widgets.dot("grey"), "Baseline"),
    html.join(widgets.dot("blue"), "Candidate"),
    *("Difference", "95 % interval", "▼ Broken", "▲ Fixed", "Churn", "p (Holm)", "In words"),
)


def task_table(result: core.Comparison, a: RunInfo, b: RunInfo) -> None:
    """Per task: accuracies, difference, interval, what broke and what was fixed, the test."""
    rows = []
    for row in result.rows:
        task = "" if row.task == core.MACRO else row.task
        query = url.params(a=a.id, b=b.id, task=task, flip="broken~fixed")
        name = widgets.link(fmt.task(row.task), "flips", query, cls="b-nowrap")
        accuracies = (fmt.count(row.n), fmt.percent(row.acc_a), fmt.percent(row.acc_b))
        delta = (fmt.points(row.delta), fmt.interval(row.low, row.high))
        churn = (fmt.count(row.broken), fmt.count(row.fixed), fmt.percent(row.churn / row.n))
        rows.append((name, *accuracies, *delta, *churn, p_value(row.p_holm), short(row.words)))
    html.show(widgets.table(TASK_HEAD, rows, total=True, left=(0, 10)))
    widgets.explain_undecided(*(row.words for row in result.rows))


def delta_text(judged: Judgement, items: str = "") -> str:
    """A difference with its interval, n and which items those are:
    ``−4.7 points [−5.4, −3.9], n = 2,299, limit 500``."""
    e = judged.estimate
    if e is None:
        return "no interval"
    text = f"{fmt.points(e.value)} points {fmt.interval_of(e)}, n = {fmt.count(e.n)}"
    return f"{text}, {items}" if items else text


def short(words: str) -> str:
    """A verdict's words, short enough for a table's cell."""
    return "undecided after Holm" if words.startswith("undecided once") else words


def p_value(value: float | None) -> str:
    if fmt.missing(value):
        return fmt.NONE
    return "< 0.001" if value < 0.001 else fmt.number(value, 3)  # type: ignore[operator]


def ladder(runs: tuple[RunInfo, ...], base: RunInfo, told: story.Story, metric: Metric) -> None:
    """Every stage of the baseline's model on its items: how much of stage 1 is kept. If no
    fine-tune was evaluated on these items, those on other items follow, against their own base."""
    here = _stages(runs, base)
    _ladder_table(base, here, told, metric)
    if not any(run.checkpoint for run in here) and not base.checkpoint:
        study = story.find(runs, base)
        if study is not None and study.base is not None:
            html.show(
                html.div(
                    "b",
                    html.el("b", "With fine-tuning: stages 3B, 3C and 4"),
                    f", on {study.where}",
                )
            )
            _ladder_table(study.base, _stages(runs, study.base), told, metric)
        elif study is None:
            widgets.note(
                "Stages 3B, 3C and 4 are not run yet: ",
                html.el("code", pair.pipeline_command(base.model), cls="b-cmd"),
            )
    widgets.note(
        "Guessing alone keeps much of the plain ratio, so the share kept above chance is the one "
        "to read: (accuracy − chance) / (stage 1 − chance)."
    )


def _stages(runs: tuple[RunInfo, ...], base: RunInfo) -> list[RunInfo]:
    """The other finished evaluations on the same items, in the order of the study."""
    stages = [
        run
        for run in runs
        if run.is_done
        and run.same_items(base)
        and run.id != base.id
        and not run.is_finetune
        and run.context == "full"
        and run.stage != "lab"
    ]

    def order(run: RunInfo) -> tuple[object, ...]:
        return bool(run.checkpoint), run.method == "lora", run.weights, run.stage, run.regime

    return sorted(stages, key=order)


LADDER_HEAD = (
    *("Stage", "n", "Macro", "Plain ratio", "Kept above chance", "95 % interval"),
    html.join("Published ", widgets.small("acc, ratio")),
)


def _ladder_table(base: RunInfo, stages: list[RunInfo], told: story.Story, metric: Metric) -> None:
    first = base.macro.get(metric)
    groups = seeds.groups(stages)[:24]
    by_id = {group.some.id: group.label for group in groups}

    def name(run: RunInfo) -> str:
        trained = f", trained {run.trained_under}" if run.trained_under else ""
        return f"{run.regime} · {by_id.get(run.id, run.weights)}{trained}"

    shown = [base, *(group.some for group in groups)]
    extra = data.apart(shown, lambda run: f"{run.stage_label} {name(run)}")

    def title(run: RunInfo) -> html.Html:
        return html.join(run.stage_label, " ", widgets.small(name(run) + extra[run.id]))

    kept_whole = ("1.000", "100.0 %", fmt.NONE, _published(told, base.stage))
    rows: list[tuple[object, ...]] = [
        (title(base), fmt.count(base.n_items), fmt.percent(first), *kept_whole)
    ]
    for group in groups:
        run, value = group.some, group.mean(metric)
        result = seeds.difference(seeds.Group((base,)), group.with_items, metric)
        if result is None and group.with_items:
            continue
        shares = _kept(result.above_chance if result else None)
        if result is not None and group.items_words:
            shares = (shares[0], html.join(shares[1], " ", widgets.small(group.items_words)))
        whole = None if group.items_words else result  # else the mean over all seeds
        acc, start = (whole.acc_b, whole.acc_a) if whole else (value, first)
        ratio = acc / start if acc is not None and start else None
        n = result.n if result else run.n_items
        numbers = (fmt.count(n), fmt.percent(acc), fmt.number(ratio, 3))
        twin = _published(told, run.stage) if _has_published_twin(run) else fmt.NONE
        rows.append((title(run), *numbers, *shares, twin))
    html.show(widgets.table(LADDER_HEAD, rows))


def _kept(kept: Retention | None) -> tuple[object, object]:
    """The share kept above chance and its interval; or that it is not stated, and why."""
    if kept is None:
        return "not stated", "no items to pair"
    if kept.value is None:
        return "not stated", fmt.tie(kept.why_suppressed or fmt.NONE)
    return fmt.percent(kept.value), f"[{fmt.percent(kept.low)}, {fmt.percent(kept.high)}]"


def _has_published_twin(run: RunInfo) -> bool:
    """The published study had the base and one full fine-tune with the new mask, no control."""
    plain = run.regime in ("causal", "bidirectional")
    return plain and run.weights.split()[:1] in ([], ["base"], ["3B"]) and run.method != "lora"


def _published(told: story.Story, stage: str) -> str:
    run, first = told.published.get(stage), told.published.get(STAGE1)
    value = run.macro.get("acc") if run else None
    if value is None:
        return fmt.NONE
    base = first.macro.get("acc") if first else None
    return fmt.percent(value) + (f", {fmt.number(value / base, 3)}" if base else "")


def open_flips(task: str, a: RunInfo, b: RunInfo) -> None:
    query = url.params(a=a.id, b=b.id, flip="broken~fixed", task="" if task == core.MACRO else task)
    st.switch_page("pages/flips.py", query_params=query)


# Several runs against one: a chart of paired differences with its table.


def against(
    base: RunInfo, runs: list[RunInfo], labels: dict[str, str]
) -> tuple[pd.DataFrame, list[Any]]:
    """Paired differences of several runs to one: the frame for ``plots.dots``, and table rows.

    Runs of several training seeds are one row. ``labels``: by the id of any run of a row.
    """
    dots, rows = [], []
    groups = seeds.groups(runs)

    def name(run: RunInfo) -> str:
        return labels.get(run.id, run.label)

    extra = data.apart((group.some for group in groups), name)
    for group in groups:
        row = seeds.difference(seeds.Group((base,)), group)
        label = name(group.some) + extra[group.some.id]
        if len(group.runs) > 1:
            label = f"{label}, {len(group.runs)} seeds"
        elif group.some.train_seed:
            label = f"{label}, seed {group.some.train_seed}"
        if row is None or row.interval is None:
            rows.append((label, "does not pair", *[fmt.NONE] * 4))
            continue
        interval = fmt.interval_of(row.interval)
        text = f"{fmt.points(row.value)}  {interval}"
        dots.append(plots.dot_row(fmt.clip(label), row.value, row.judgement, text))
        numbers = (fmt.count(row.n), fmt.percent(row.acc_b), fmt.points(row.value))
        rows.append((label, *numbers, interval, row.words))
    return pd.DataFrame(dots), rows


def show(base: RunInfo, runs: list[RunInfo], labels: dict[str, str], key: str) -> list[str]:
    """Draw chart and table; each row's verdict in words."""
    frame, rows = against(base, runs, labels)
    if not frame.empty:
        title = "Macro accuracy against stage 1, points (95 % interval)"
        widgets.chart(
            plots.dots(frame, title=title, reference=0.0),
            "Macro accuracy of each run minus stage 1, with intervals; the table below has the numbers.",
            key=key,
        )
    head = ("Run", "n", "Macro acc", "Difference, points", "95 % interval", "In words")
    html.show(widgets.table(head, rows, left=(0, 5)))
    return [str(row[5]) for row in rows]
