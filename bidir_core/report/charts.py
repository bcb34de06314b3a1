"""The charts of a report, section by section, from the numbers its tables show."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from bidir_core.analyse.contrasts import Contrast, cell_title, in_words, level
from bidir_core.analyse.judgement import Findings
from bidir_core.analyse.study import CAUSAL, NAMES, ordered_cells
from bidir_core.analyse.verdict import Judgement, ends_text
from bidir_core.common import formatting
from bidir_core.data.item_texts import visible
from bidir_core.regimes import parse_regime
from bidir_core.report import plots
from bidir_core.report.markdown import Interval, Table
from bidir_core.report.rows import Look, Row, interval_rows
from bidir_core.report.sections import FRONT, Report

IN_LEGEND = 36  # characters a line
CURVE_COLOURS = {NAMES.get(code, code): hue for code, hue in plots.OBJECTIVE_COLOURS.items()}


@dataclass(frozen=True)
class Chart:
    """A figure, what it is called, and what it shows for those who cannot see it."""

    key: str
    title: str
    alt: str
    figure: go.Figure


def charts(report: Report) -> dict[str, list[Chart | Markup]]:
    """Charts by the key of the section they belong to."""
    numbers, study = report.numbers, report.study
    repaired = [(arm, study.own_regime(arm)) for arm in study.trained("3B", "distill")[:1]]
    by_section: dict[str, Sequence[Chart | Markup]] = {
        FRONT: _forest(numbers.damage()),
        "macro": _ladder(numbers),
        # What is left of the cost after training, task by task.
        "per_task": _forest(numbers.between(numbers.stage1, repaired[0]) if repaired else None),
        "curve": _curve(report),
    }
    return {key: list(drawn) for key, drawn in by_section.items() if drawn}


def _forest(contrast: Contrast | None) -> list[Markup]:
    if contrast is None or not contrast.tasks:
        return []
    rows = [(task.task, task.delta, task.judgement, False) for task in contrast.tasks]
    rows.append(("macro", contrast.value, contrast.judgement, True))
    chart = interval_rows(
        [verdict_row(formatting.task_title(row[0]), *row[1:]) for row in rows],
        reference=0.0,
        axis="Difference in accuracy, points, with 95 % intervals; 0: no difference",
    )
    title = in_words(contrast.title)
    return [_figure(f"{title[:1].upper()}{title[1:]}, by task", chart)]


def verdict_row(label: str, delta: float, judged: Judgement, total: bool = False) -> Row:
    """A difference, shaped and coloured by its verdict."""
    text, estimate = formatting.points(delta, signed=True), judged.estimate
    if estimate is None:
        return Row(label, formatting.minus(f"{text}, no interval"), delta, total=total)
    text = f"{text} ({ends_text(estimate.low, estimate.high)})"
    return Row(
        label, formatting.minus(text), delta, estimate.low, estimate.high, judged.verdict, total
    )


def _figure(title: str, chart: Markup) -> Markup:
    return Markup('<figure class="chart"><figcaption>{}</figcaption>{}</figure>').format(
        visible(title), chart
    )


def _ladder(numbers: Findings) -> list[Markup]:
    """Macro accuracy of every stage against stage 1, with the share kept above chance."""
    rows, study = [], numbers.study
    base = level(study.runs(*numbers.stage1), numbers.metric)
    for cell in ordered_cells(study):
        accuracy = level(study.runs(*cell), numbers.metric)
        if accuracy is None:
            continue
        against = None if cell == numbers.stage1 else numbers.between(numbers.stage1, cell)
        kept = against.above_chance if against is not None else None
        text = f"{100 * accuracy.value:.1f} %"
        if kept is not None and kept.value is not None:
            text += f", {100 * kept.value:.0f} % kept"
        ahead = parse_regime(cell[1]).bidirectional
        look: Look = "leaky" if cell[0].leaky else "ahead" if ahead else "causal"
        row = Row(in_words(cell_title(study, cell)), text, accuracy.value, look=look)
        if (ends := accuracy.interval) is not None:
            row = row._replace(low=ends.low, high=ends.high)
        rows.append(row)
    if len(rows) < 2:
        return []
    axis = (
        f"Macro {numbers.metric}, %, with the 95 % interval of each run alone; the line is stage 1. "
        "Kept: the share of stage 1's accuracy above chance. Circles are evaluated causal, "
        "diamonds bidirectional."
    )
    chart = interval_rows(rows, reference=base.value if base else None, axis=axis)
    return [_figure("Every stage against stage 1", chart)]


def _curve(report: Report) -> list[Chart]:
    """Quick evaluations along the training: a line for each arm and regime."""
    table = report.tables.get("curve")
    if not table:
        return []
    return [
        Chart(
            "curve",
            "Recovery while training",
            "Accuracy of quick evaluations by training step, for each arm under each regime: "
            "solid lines bidirectional, dotted causal. The table has the numbers.",
            recovery(table_frame(table)),
        )
    ]


def table_frame(table: Table) -> pd.DataFrame:
    """A table's values by column name."""
    return pd.DataFrame(table.rows, columns=[column.name for column in table.columns])


def recovery(frame: pd.DataFrame) -> go.Figure:
    """``frame``: of :func:`bidir_core.report.tables.curve_table`, or some of its rows."""
    figure = go.Figure()
    several = frame["Regime"].nunique() > 1
    for (arm, regime), part in frame.groupby(["Arm", "Regime"], sort=False):
        name, _, variant = str(arm).partition(" (method")
        causal = regime == CAUSAL
        means = part["Macro acc"].tolist()
        spreads = [
            seeds if isinstance(seeds, Interval) else Interval(mean, mean)  # of a single seed
            for mean, seeds in zip(means, part["Seeds low to high"])
        ]
        label = visible(f"{regime}, {arm}" if several else str(arm))
        lines = textwrap.wrap(label, IN_LEGEND, max_lines=4, placeholder=" …")
        figure.add_scatter(
            x=part["Step"].tolist(),
            y=[100 * mean for mean in means],
            mode="lines+markers",
            name="<br>".join(map(plots.inert, lines)),
            line={
                "color": CURVE_COLOURS.get(name, plots.GREEN),
                "width": 2,
                "dash": "dot" if causal else "solid",
            },
            marker={
                "symbol": ("square" if variant else "circle") + ("-open" if causal else ""),
                "size": 7,
            },
            error_y={
                "type": "data",
                "symmetric": False,
                "visible": any(low < high for low, high in spreads),
                "array": [100 * (seeds.high - mean) for mean, seeds in zip(means, spreads)],
                "arrayminus": [100 * (mean - seeds.low) for mean, seeds in zip(means, spreads)],
            },
            hovertemplate="step %{x}: %{y:.1f} %<extra>%{fullData.name}</extra>",
        )
    legend = {"font": {"size": 12}}
    title = "Macro accuracy of quick evaluations, %"
    _by_step(figure, 420, title, showlegend=None, legend=legend)
    return figure


def _by_step(figure: go.Figure, height: int, title: str, **more: object) -> None:
    plots.lay_out(figure, height, (60, 10, 10, 50), **more)
    figure.update_xaxes(title="Training step", **plots.GRID_AXIS)
    figure.update_yaxes(title=title, **plots.GRID_AXIS)


def training_loss(steps: Sequence[int], losses: Sequence[float]) -> go.Figure:
    """The loss of a fine-tune by step, nats a predicted token."""
    figure = go.Figure()
    figure.add_scatter(
        x=list(steps),
        y=list(losses),
        mode="lines+markers",
        line={"color": plots.BLUE, "width": 2},
        marker={"size": 5},
        hovertemplate="step %{x}: %{y:.3f} nats<extra></extra>",
    )
    _by_step(figure, 280, "Loss, nats a token")
    return figure
