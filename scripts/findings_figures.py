"""The findings' figures: what each first open layer costs, and what each way does to the order tasks."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bidir_core.analyse.stats import Estimate
from bidir_core.report.paper_figures import style
from scripts import findings_law, findings_order

COLOURS = ("#5f5f5f", "#D55E00", "#56B4E9", "#0072B2", "#009E73")
MARKS = "ovsD^"


def svg(draw: Callable[[], Figure]) -> str:
    """A figure as text that stays the same, byte for byte."""
    with style():
        out = io.StringIO()
        draw().savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def differences(
    axes: Axes, series: Mapping[str, Sequence[Estimate]], at: Sequence[Sequence[int]], line: str
) -> None:
    """Differences in points with 95 % intervals, a colour a name, side by side at each place."""
    for number, ((name, estimates), places) in enumerate(zip(series.items(), at, strict=True)):
        points = np.array([[e.value, e.value - e.low, e.high - e.value] for e in estimates]) * 100
        axes.errorbar(
            np.array(places) + 0.08 * (number - (len(series) - 1) / 2),
            points[:, 0],
            points[:, 1:].T,
            label=name,
            linestyle=line,
            linewidth=1,
            color=COLOURS[number],
            marker=MARKS[number],
            markersize=3.5,
        )
    axes.axhline(0, color="#5f5f5f", linewidth=0.6)
    axes.set_ylabel("points against causal (95 % CI)")
    axes.legend(frameon=False)


def law() -> Figure:
    figure = Figure(figsize=(6.3, 2.8), layout="constrained")
    axes = figure.subplots()
    curves = {
        title: findings_law.laws()[name][0].curve for name, title in findings_law.NAMES.items()
    }
    costs = {title: [opened.whole for opened in curve] for title, curve in curves.items()}
    places = [[opened.first_layer for opened in curve] for curve in curves.values()]
    differences(axes, costs, places, "-")
    axes.set_xlabel("first layer A that looks ahead, the ones before it causal (layers=A-)")
    return figure


def order() -> Figure:
    figure = Figure(figsize=(6.3, 2.8), layout="constrained")
    axes = figure.subplots()
    families, arms = findings_order.FAMILIES, findings_order.arms(findings_order.STUDY)
    index_of = {arm: i for i, arm in enumerate(findings_order.runs(findings_order.STUDY))}
    changes = {}
    for arm in ("bidirectional", "sink1", "opened", "twice"):
        recovered = [arms[family][index_of[arm]].recovered for family in families]
        title = findings_order.ARMS[arm].replace("`", "")
        changes[title] = [change.last_change for change in recovered if change]
    differences(axes, changes, [range(len(families))] * len(changes), "none")
    tokens = [arms[family][index_of["causal"]].prompt_tokens for family in families]
    labels = [f"{family}\n{n:,.0f} tokens" for family, n in zip(families, tokens, strict=True)]
    axes.set_xticks(range(len(families)), labels)
    return figure


def order_layers() -> Figure:
    """``layers=A-`` by A, on SciQ with ever longer prompts: passage first, last; a row a model."""
    figure = Figure(figsize=(6.3, 4.6), layout="constrained")
    grid = figure.subplots(len(findings_order.MODELS), 2, sharex="row", sharey="row")
    for model, row in zip(findings_order.MODELS, grid):
        by_layer = {0: "bidirectional"} | {
            int(match[1]): arm
            for arm, run in findings_order.runs(model).items()
            if (match := re.fullmatch(r"bidirectional:layers=(\d+)-", str(run.regime)))
            and "3B" not in arm
        }
        layers, index_of = (
            sorted(by_layer),
            {a: i for i, a in enumerate(findings_order.runs(model))},
        )
        for order, axes in zip(("first", "last"), row):
            changes = {}
            for family in ("sciq", "sciq_medium", "sciq_long"):
                arms = findings_order.arms(model)[family]
                found = [arms[index_of[by_layer[layer]]] for layer in layers]
                label = f"{found[0].prompt_tokens:,.0f} tokens"
                changes[label] = [getattr(arm.recovered, f"{order}_change") for arm in found]
            differences(axes, changes, [layers] * len(changes), "-")
            axes.set_title(f"{findings_law.NAMES[model]}, passage {order}", fontsize="medium")
        row[1].set_ylabel("")
        row[1].get_legend().remove()
    for axes in grid[-1]:
        axes.set_xlabel("first layer A that looks ahead (layers=A-)")
    return figure


FIGURES = {
    "law": lambda: svg(law),
    "order": lambda: svg(order),
    "order_layers": lambda: svg(order_layers),
}
