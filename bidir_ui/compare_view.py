"""The Compare page's parts: 2x2 tables, slices, retention above no context, mismatches."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from bidir_core import compare as core
from bidir_core import plots
from bidir_core.errors import UserError
from bidir_core.pairing import mismatch_report
from bidir_ui import analysis, data, fmt, html, slices, url, widgets
from bidir_ui.data import RunInfo


def two_by_two(result: core.Comparison, a: RunInfo, b: RunInfo) -> None:
    """One small table per task; every count links to its items."""
    columns = st.columns(min(len(result.tasks), 5) or 1, gap="medium")
    for number, row in enumerate(result.tasks):

        def cell(value: int, flips: str, task: str = row.task) -> html.Html:
            query = url.params(a=a.id, b=b.id, task=task, flip=flips)
            return html.el("a", fmt.count(value), href=url.href("flips", query), target="_self")

        table = widgets.table(
            (fmt.clip(fmt.task(row.task), 24), "right", "wrong"),
            (
                ("right", cell(row.both_right, "same_right"), html.join("▼ ", cell(row.broken, "broken"))),
                (
                    "wrong",
                    html.join("▲ ", cell(row.fixed, "fixed")),
                    cell(row.both_wrong, "changed_wrong~same_wrong"),
                ),
            ),
        )  # fmt: skip
        with columns[number % len(columns)]:
            html.show(table)
            test = "no flips" if row.p_value is None else f"McNemar p {p_text(row.p_value)}"
            least = (
                ""
                if row.detectable is None
                else f"; detects {fmt.points(row.detectable).lstrip('+')} points"
            )
            widgets.note(f"n = {fmt.count(row.n)}, {test}{least}")


def p_text(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {fmt.number(value, 3)}"


def retention(
    result: core.Comparison, runs: tuple[RunInfo, ...], a: RunInfo, b: RunInfo, metric: str
) -> None:
    """What is kept above chance and, with a no-context run, above not reading the prompt."""

    def text(kept: object) -> str:
        value = getattr(kept, "value", None)
        if value is None:
            return fmt.tie(f"not stated: {getattr(kept, 'why_suppressed', '')}")
        low, high = fmt.percent(kept.low), fmt.percent(kept.high)  # type: ignore[attr-defined]
        return f"{fmt.percent(value)} [{low}, {high}]"

    rows = [
        ("plain ratio", fmt.number(result.plain_ratio, 3)),
        ("kept above chance", text(result.above_chance)),
    ]
    floors = [
        run
        for run in runs
        if run.context == "none" and run.model == a.model and run.is_done and run.has_items
    ]
    # The floor may hold more items than the pair; its number format should be the pair's.
    floor = max(floors, key=lambda run: (run.same_items(a), run.dtype == a.dtype), default=None)
    if floor is None:
        flag = f" --model {a.model}"
        rows.append(("kept above no context", f"not run yet: eval --context none{flag}"))
    else:
        try:
            above = analysis.compare(
                a, b, metric, intersect=analysis.intersecting(), floor=floor
            ).above_no_context
            rows.append(("kept above no context", text(above)))
        except UserError as error:
            rows.append(("kept above no context", str(error)))
    cells = [part for name, value in rows for part in (html.el("dt", name), html.el("dd", value))]
    html.show(html.el("dl", *cells, cls="b b-kv"))


def slice_charts(frame: pd.DataFrame, key: str) -> None:
    """Three charts: by prefix length, by length of the right choice, by its position."""
    kinds = [("By position of the right choice", frame["gold"].map(lambda gold: f"choice {gold}"))]
    if frame["length"].any():  # unless neither run counted its tokens
        kinds = [
            ("By prefix length, tokens", slices.bands(frame["length"])),
            ("By length of the right choice, tokens", slices.bands(frame["gold_length"])),
            *kinds,
        ]
    for column, (title, labels) in zip(st.columns(3, gap="small"), kinds, strict=False):
        rows = slices.differences(frame, labels)
        with column:
            html.show(html.div("b", html.el("b", title)))
            if rows.empty:
                widgets.note("Too few items in every slice.")
                continue
            figure = plots.dots(rows, title="points", reference=0.0)
            figure.update_layout(margin={"l": 76, "r": 96})
            widgets.chart(
                figure, f"{title}; the table below has the numbers.", key=f"{title}-{key}"
            )
    with st.expander("The same as a table"):
        parts = []
        for title, labels in kinds:
            rows = slices.differences(frame, labels)
            parts += [
                (title, r.label, fmt.count(r.n), fmt.points(r.value), fmt.interval(r.low, r.high), r.broken, r.fixed)
                for r in rows.itertuples()
            ]  # fmt: skip
        head = ("Slice", "", "n", "Difference, points", "95 % interval", "▼ Broken", "▲ Fixed")
        html.show(widgets.table(head, parts, left=(1,)))


def show_mismatches(a: RunInfo, b: RunInfo) -> None:
    """Every setting in which the runs differ so that their items must not be paired."""
    found = mismatch_report(data.run_of(a), data.run_of(b))
    if found and a.has_items and b.has_items:  # without items that alone is the reason
        rows = [
            (m.what, fmt.clip(m.value_a, 60), fmt.clip(m.value_b, 60), m.sentence) for m in found
        ]
        head = ("What differs", "Baseline", "Candidate", "Why it matters")
        html.show(widgets.table(head, rows, left=(1, 2, 3)))
