"""Recovery while training: what the quick evaluations of fine-tunes found, step by step."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import plotly.graph_objects as go
import streamlit as st

from bidir_core import plots
from bidir_core.training.curve import read_curve
from bidir_ui import data, fmt, html, widgets
from bidir_ui.data import RunInfo

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
                figure, f"{title}: accuracy by training step; the table below has the numbers.",
                key=f"recovery-{regime}",
            )  # fmt: skip
    with st.expander("The same as a table"):
        html.show(_table(curves))


def _figure(curves: list[Curve], span: list[float]) -> go.Figure:
    figure = go.Figure()
    for curve in curves:
        means = curve.means
        figure.add_scatter(
            x=list(means), y=[100 * value for value in means.values()], mode="lines+markers",
            name=plots.inert(curve.arm),
            line={
                "color": plots.OBJECTIVE_COLOURS.get(curve.objective, plots.RED), "width": 2,
                "dash": "dash" if curve.method == "lora" else "solid",
            },
            marker={"size": 6, "symbol": "square" if curve.method == "lora" else "circle"},
            hovertemplate="step %{x}: %{y:.1f} %<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    figure.update_layout(
        height=330, margin={"l": 48, "r": 8, "t": 8, "b": 84}, hovermode="closest", dragmode=False,
        legend={"orientation": "h", "y": -0.24, "x": 0, "font": {"size": 12}},
    )  # fmt: skip
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
