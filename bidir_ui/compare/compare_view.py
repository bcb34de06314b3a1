"""The Compare page's parts: 2x2 tables, slices, retention above no context, mismatches."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from bidir_core.analyse import compare as core
from bidir_core.analyse.pairing import mismatch_report
from bidir_core.common.errors import UserError
from bidir_core.report import plots
from bidir_core.runs.curve import read_curve
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.reading import analysis, data, filters
from bidir_ui.reading.data import RunInfo


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
                (
                    "right",
                    cell(row.both_right, "same_right"),
                    html.join("▼ ", cell(row.broken, "broken")),
                ),
                (
                    "wrong",
                    html.join("▲ ", cell(row.fixed, "fixed")),
                    cell(row.both_wrong, "changed_wrong~same_wrong"),
                ),
            ),
        )
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
    widgets.facts(rows)


def slice_charts(frame: pd.DataFrame, key: str) -> None:
    """Three charts: by prefix length, by length of the right choice, by its position."""
    kinds = [("By position of the right choice", frame["gold"].map(lambda gold: f"choice {gold}"))]
    if frame["length"].any():  # unless neither run counted its tokens
        kinds = [
            ("By prefix length, tokens", filters.bands(frame["length"])),
            ("By length of the right choice, tokens", filters.bands(frame["gold_length"])),
            *kinds,
        ]
    for column, (title, labels) in zip(st.columns(3, gap="small"), kinds, strict=False):
        rows = filters.differences(frame, labels)
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
            rows = filters.differences(frame, labels)
            parts += [
                (
                    title,
                    r.label,
                    fmt.count(r.n),
                    fmt.points(r.value),
                    fmt.interval(r.low, r.high),
                    r.broken,
                    r.fixed,
                )
                for r in rows.itertuples()
            ]
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


# Recovery while training: what the quick evaluations of fine-tunes found, step by step.

REGIMES = {"bidirectional": "Under bidirectional prefill", "causal": "With the causal mask"}


@dataclass(frozen=True)
class Curve:
    """One way of training, evaluated under one regime: accuracy by step, a value a seed."""

    arm: str
    objective: str
    method: str
    regime: str
    points: Mapping[int, tuple[float, ...]]

    @property
    def means(self) -> dict[int, float]:
        return {step: statistics.fmean(values) for step, values in sorted(self.points.items())}

    @property
    def n_seeds(self) -> int:
        return max(map(len, self.points.values()))


def read(runs: Iterable[RunInfo], model: str) -> list[Curve]:
    """The curves of a model's fine-tunes, seeds of an arm together."""
    found: dict[tuple[str, str, str, str], dict[int, list[float]]] = {}
    for run in runs:
        if not run.is_finetune or run.model != model:
            continue
        for line in read_curve(data.run_of(run).path):
            evals = line.get("evals")
            for regime, row in evals.items() if isinstance(evals, dict) else ():
                value = row.get("acc") if isinstance(row, dict) else None
                step = line.get("step")
                if isinstance(value, int | float) and isinstance(step, int):
                    key = (run.arm_label, run.arm.code if run.arm else "", run.method, regime)
                    found.setdefault(key, {}).setdefault(step, []).append(float(value))
    return [
        Curve(*key, points={step: tuple(values) for step, values in points.items()})
        for key, points in sorted(found.items())
    ]


def show(runs: Iterable[RunInfo], model: str) -> None:
    """A panel for each regime on one scale, and the numbers as a table."""
    widgets.heading("Recovery while training")
    curves = read(runs, model)
    if not curves:
        widgets.not_run(
            "A fine-tune records quick evaluations under both regimes as it goes.",
            "python -m bidir_core finetune --prompt-bidir-response-causal-train",
        )
        return
    widgets.note(
        "Macro accuracy of quick evaluations on a few items: wide uncertainty, read the trend. "
        "Dashed: LoRA."
    )
    values = [100 * value for curve in curves for value in curve.means.values()]
    span = [min(values) - 1, max(values) + 1]
    regimes = [*REGIMES, *sorted({curve.regime for curve in curves} - set(REGIMES))]
    shown = [regime for regime in regimes if any(curve.regime == regime for curve in curves)]
    for column, regime in zip(st.columns(len(shown), gap="medium"), shown, strict=True):
        with column:
            title = REGIMES.get(regime, f"Under {regime}")
            html.show(html.div("b", html.el("b", title)))
            figure = _figure([curve for curve in curves if curve.regime == regime], span)
            widgets.chart(
                figure,
                f"{title}: accuracy by training step; the table below has the numbers.",
                key=f"recovery-{regime}",
            )
    with st.expander("The same as a table"):
        html.show(_table(curves))


def _figure(curves: list[Curve], span: list[float]) -> go.Figure:
    figure = go.Figure()
    for curve in curves:
        means = curve.means
        figure.add_scatter(
            x=list(means),
            y=[100 * value for value in means.values()],
            mode="lines+markers",
            name=plots.inert(curve.arm),
            line={
                "color": plots.OBJECTIVE_COLOURS.get(curve.objective, plots.RED),
                "width": 2,
                "dash": "dash" if curve.method == "lora" else "solid",
            },
            marker={"size": 6, "symbol": "square" if curve.method == "lora" else "circle"},
            hovertemplate="step %{x}: %{y:.1f} %<extra>%{fullData.name}</extra>",
        )
    figure.update_layout(
        height=330,
        margin={"l": 48, "r": 8, "t": 8, "b": 84},
        hovermode="closest",
        dragmode=False,
        legend={"orientation": "h", "y": -0.24, "x": 0, "font": {"size": 12}},
    )
    figure.update_xaxes(title="step", gridcolor=plots.FAINT, zeroline=False, fixedrange=True)
    figure.update_yaxes(
        title="accuracy, %", range=span, gridcolor=plots.FAINT, zeroline=False, fixedrange=True
    )
    return figure


def _table(curves: list[Curve]) -> html.Html:
    steps = sorted({step for curve in curves for step in curve.points})
    rows = []
    for curve in curves:
        means = curve.means
        cells = [fmt.percent(means[step]) if step in means else fmt.NONE for step in steps]
        rows.append((curve.arm, curve.regime, fmt.count(curve.n_seeds), *cells))
    head = ("Trained", "Evaluated", "Seeds", *(f"{fmt.count(step)}" for step in steps))
    return widgets.table(head, rows, left=(1,))
