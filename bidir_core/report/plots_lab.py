"""Frames of a sweep's points in, Plotly figures out. A click returns the point's slug."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from bidir_core.regimes import Regime, parse_regime
from bidir_core.report.plots import (
    BLUE,
    GREEN,
    GREY,
    GRID_AXIS,
    PLAIN_AXIS,
    RED,
    add_clickable,
    inert,
    lay_out,
)

SERIES = ((BLUE, "circle"), (RED, "square"), (GREEN, "diamond"), (GREY, "triangle-up"))
HEIGHT, LEFT, RIGHT = 300, 58, 104  # the same margins, so that charts of layers line up

MOST_LABELS = 9  # of ticks: more would stand on each other on a phone

# Lower than causal is orange, higher is green; in the middle the page shows through.
DIVERGING = [[0.0, RED], [0.5, "rgba(127,127,127,0.10)"], [1.0, GREEN]]


def curves(
    frames: Sequence[tuple[str, pd.DataFrame]],
    ticks: Sequence[tuple[float, str]],
    *,
    x_title: str,
    y_title: str,
    levels: Sequence[tuple[float, str]] = (),
    chosen: str = "",
    room: float | None = None,
) -> go.Figure:
    """Lines of points with 95 % intervals over a dial.

    ``frames``: (name, frame) per line, each frame with slug, x, y, low, high (percent or points;
    low and high may be NaN) and text. ``ticks``: where the dial's values stand. ``levels``:
    (height, word) of lines to compare with. ``chosen``: the slug that gets a ring. ``room``: how
    far the axis goes beyond its ends.
    """
    figure = go.Figure()
    for height, word in levels:
        figure.add_hline(
            y=height,
            line={"color": GREY, "width": 1.3, "dash": "dot"},
            annotation={
                "text": inert(word),
                "font": {"size": 12, "color": GREY},
                "xanchor": "left",
            },
        )
    at, labels = zip(*ticks, strict=True) if ticks else ((), ())
    step = math.ceil(len(labels) / MOST_LABELS) or 1
    reach = (max(at) - min(at) if len(set(at)) > 1 else 1.0) if at else 1.0
    for number, (name, frame) in enumerate(frames):
        # Side by side, so that the intervals of several lines can be told apart.
        frame = frame.assign(
            x=frame["x"] + min(0.012 * reach, 0.12) * (number - (len(frames) - 1) / 2)
        )
        colour, symbol = SERIES[number % len(SERIES)]
        figure.add_scatter(
            x=frame["x"],
            y=frame["y"],
            mode="lines+markers",
            name=inert(name),
            customdata=frame[["slug"]].to_numpy(),
            text=[inert(t) for t in frame["text"]],
            hovertemplate="%{text}<extra></extra>",
            line={"color": colour, "width": 2},
            marker={"color": colour, "size": 9, "symbol": symbol},
            error_y={
                "symmetric": False,
                "array": (frame["high"] - frame["y"]).fillna(0),
                "arrayminus": (frame["y"] - frame["low"]).fillna(0),
                "color": colour,
                "thickness": 1.4,
                "width": 3,
            },
            unselected={"marker": {"opacity": 1}},
            selected={"marker": {"opacity": 1}},
        )
        ring = frame[frame["slug"] == chosen]
        _add_marks(figure, ring["x"], ring["y"], 18, colour, "circle-open", line={"width": 2})
    top = 44 if len(frames) > 1 else 14
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    margins = (LEFT, RIGHT, top, 48)
    lay_out(figure, HEIGHT - 14 + top, margins, showlegend=len(frames) > 1, legend=legend)
    if room is None:
        room = 0.08 * reach if len(set(at)) > 1 else 0.5
    figure.update_xaxes(
        title=x_title,
        tickmode="array",
        tickvals=at,
        ticktext=[inert(t) if i % step == 0 else "" for i, t in enumerate(labels)],
        range=[min(at) - room, max(at) + room] if at else None,
        **PLAIN_AXIS,
    )
    figure.update_yaxes(title=y_title, **GRID_AXIS)
    return figure


def _add_marks(
    figure: go.Figure,
    x: pd.Series,
    y: pd.Series,
    size: float,
    colour: str,
    symbol: str = "circle",
    **marker: Any,
) -> None:
    """Points to look at, which take no clicks; none where there are none."""
    if len(x):
        marker |= {"size": size, "color": colour, "symbol": symbol}
        options = {"mode": "markers", "hoverinfo": "skip", "showlegend": False}
        figure.add_scatter(x=x, y=y, marker=marker, **options)


def layer_map(frame: pd.DataFrame, n_layers: int, *, unit: str, chosen: str = "") -> go.Figure:
    """Ranges of layers as cells: where a range starts, by how many layers it spans.

    ``frame``: slug, start, width, y, different (its interval excludes 0) and text. A Plotly heat
    map returns no clicks, so an invisible layer of points lies over it.
    """
    widths = sorted(frame["width"].unique())
    row = {width: number for number, width in enumerate(widths)}
    cells = np.full((len(widths), n_layers), np.nan)
    for line in frame.itertuples():
        cells[row[line.width], line.start] = line.y
    most = max(float(np.abs(cells[~np.isnan(cells)]).max(initial=0.0)), 0.1)
    figure = go.Figure(
        go.Heatmap(
            z=cells,
            zmin=-most,
            zmax=most,
            colorscale=DIVERGING,
            xgap=1,
            ygap=1,
            hoverinfo="skip",
            hoverongaps=False,
            colorbar={
                "title": {"text": inert(unit), "side": "right"},
                "thickness": 10,
                "x": 1.015,
                "lenmode": "pixels",
                "len": max(90, 30 * len(widths)),
                "nticks": 3,
            },
        )
    )
    y = [row[width] for width in frame["width"]]
    size = max(6, min(24, 620 // max(n_layers, 1)))
    slugs, texts = frame[["slug"]].to_numpy(), [inert(text) for text in frame["text"]]
    add_clickable(figure, frame["start"], y, size, customdata=slugs, text=texts, hoverinfo="text")
    sure, ring = frame[frame["different"]], frame[frame["slug"] == chosen]
    _add_marks(figure, sure["start"], sure["width"].map(row), 4, GREY)
    line = {"width": 3}
    _add_marks(figure, ring["start"], ring["width"].map(row), size, BLUE, "square-open", line=line)
    height = 58 + max(90, min(34, 460 // len(widths)) * len(widths))
    lay_out(figure, height, (LEFT, RIGHT, 10, 48))
    figure.update_xaxes(
        title="first layer of the range",
        range=[-0.5, n_layers - 0.5],
        dtick=1 if n_layers <= 32 else 4,
        **PLAIN_AXIS,
    )
    figure.update_yaxes(
        title="layers",
        tickmode="array",
        tickvals=list(range(len(widths))),
        ticktext=[str(width) for width in widths],
        range=[-0.5, len(widths) - 0.5],
        **PLAIN_AXIS,
    )
    return figure


# Which points of a sweep make a curve, and where they stand on its axis.

# dial -> (field of a regime, the value at which it changes nothing, what the axis says)
DIALS: dict[str, tuple[str, Any, str]] = {
    "sink": ("sink", 0, "first tokens kept causal (sink)"),
    "lambda": ("lam", 1.0, "strength of looking ahead (lambda, log scale)"),
    "tail": ("tail", 0, "last prompt tokens kept causal (tail)"),
    "rows": ("rows", None, "prompt positions that look ahead (rows)"),
    "skip": ("skip", None, "the one token kept causal (skip)"),
    "self": ("self_token", None, "the token that sees only itself (self)"),
    "hide": ("hide", None, "the token that no other sees (hide)"),
    "layers": ("layers", None, "first layer that looks ahead (layers=A-)"),
}


@dataclass(frozen=True)
class Curve:
    """One dial, all else equal. ``others``: the regime without the dial; ``places``: slug and
    position of each point, in order; ``ticks``: position and label of each value."""

    dial: str
    others: Regime
    places: tuple[tuple[str, float], ...]
    ticks: tuple[tuple[float, str], ...]

    @property
    def name(self) -> str:
        """What else is set, or an empty string."""
        return str(self.others).partition(":")[2]

    @property
    def axis(self) -> str:
        return DIALS[self.dial][2]


def curve_lines(points: Iterable[Mapping[str, Any]], usual: Mapping[str, Any]) -> list[Curve]:
    """The dose-response curves among a summary's points of the sweep's own prompt condition."""
    comparable = [p for p in points if p["condition"] == usual and not p.get("patch")]
    regimes = {p["slug"]: parse_regime(p["regime"]) for p in comparable}
    swept = {p["slug"] for p in comparable if p["part"] == "sweep"}
    curves = []
    for dial, (name, neutral, _) in DIALS.items():
        groups: dict[Regime, dict[Any, str]] = {}
        for slug, regime in regimes.items():
            span = regime.layers
            closed = dial == "layers" and span is not None and span[1] is not None
            if regime.bidirectional and not closed:
                value = (span[0] if span else 0) if dial == "layers" else getattr(regime, name)
                groups.setdefault(replace(regime, **{name: neutral}), {})[value] = slug
        asked_for: list[tuple[Regime, dict[Any, str]]] = []
        for others, values in groups.items():
            at_zero = replace(others, lam=0.0)
            causal = next((slug for slug, regime in regimes.items() if regime == at_zero), None)
            asked = any(s in swept for value, s in values.items() if value != neutral)
            if dial == "lambda" and causal is not None:
                values[0.0] = causal
            if neutral is None:
                values.pop(None, None)  # without the dial there is no place on its axis
            if asked and len(values) > 1:
                asked_for.append((others, values))
        at = _places(dial, {value for _, values in asked_for for value in values})
        curves += [_curve(dial, others, values, at) for others, values in asked_for]
    return curves


def _places(dial: str, values: Iterable[Any]) -> dict[Any, float]:
    """Where each value stands; the same for all curves of a dial, which share an axis."""
    order = sorted(values)
    if dial == "lambda":
        return dict(zip(order, symlog(order), strict=True))
    # Evenly spaced: these are counts and positions, often doubling.
    return {value: float(number) for number, value in enumerate(order)}


def _curve(dial: str, others: Regime, values: Mapping[Any, str], at: Mapping[Any, float]) -> Curve:
    order = sorted(values)
    label = {value: f"{value[0]}-{value[1]}" if dial == "rows" else f"{value:g}" for value in order}
    return Curve(
        dial,
        others,
        tuple((values[value], at[value]) for value in order),
        tuple((at[value], label[value]) for value in order),
    )


def symlog(values: Iterable[float]) -> list[float]:
    """Logarithms base 10, with 0 one decade below the smallest value above it."""
    numbers = list(values)
    least = min((math.log10(v) for v in numbers if v > 0), default=0.0)
    return [math.log10(value) if value > 0 else least - 1 for value in numbers]


def layer_ranges(
    points: Iterable[Mapping[str, Any]], usual: Mapping[str, Any]
) -> dict[str, list[tuple[str, int, int]]]:
    """(slug, first layer, number of layers) of points with a layer range, by what else is set."""
    ranges: dict[str, list[tuple[str, int, int]]] = {}
    for point in points:
        regime = parse_regime(point["regime"])
        if regime.layers is None or not regime.bidirectional:
            continue
        if point["condition"] != usual or point.get("patch"):
            continue
        others = str(replace(regime, layers=None)).partition(":")[2]
        first, last = regime.layers
        if last is None:
            continue  # a curve shows these: one layer more each
        ranges.setdefault(others, []).append((point["slug"], first, last - first + 1))
    return ranges
