"""Frames of a sweep's points in, Plotly figures out. A click returns the point's slug."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from bidir_core.plots import BLUE, FAINT, GREEN, GREY, RED, inert

SERIES = ((BLUE, "circle"), (RED, "square"), (GREEN, "diamond"), (GREY, "triangle-up"))
HEIGHT, LEFT, RIGHT = 300, 58, 104  # the same margins, so that charts of layers line up
# Lower than causal is orange, higher is green; the middle is the page itself.
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
        figure.add_hline(y=height, line={"color": GREY, "width": 1.3, "dash": "dot"})
        figure.add_annotation(
            x=1, xref="paper", y=height, text=inert(word), showarrow=False, xanchor="left",
            xshift=6, font={"size": 12, "color": GREY},
        )  # fmt: skip
    at, labels = zip(*ticks, strict=True) if ticks else ((), ())
    reach = (max(at) - min(at) if len(set(at)) > 1 else 1.0) if at else 1.0
    for number, (name, frame) in enumerate(frames):
        # Side by side, so that the intervals of several lines can be told apart.
        frame = frame.assign(
            x=frame["x"] + min(0.012 * reach, 0.12) * (number - (len(frames) - 1) / 2)
        )
        colour, symbol = SERIES[number % len(SERIES)]
        figure.add_scatter(
            x=frame["x"], y=frame["y"], mode="lines+markers", name=inert(name),
            customdata=frame[["slug"]].to_numpy(), text=[inert(t) for t in frame["text"]],
            hovertemplate="%{text}<extra></extra>",
            line={"color": colour, "width": 2}, marker={"color": colour, "size": 9, "symbol": symbol},
            error_y=_errors(frame, colour),
            unselected={"marker": {"opacity": 1}}, selected={"marker": {"opacity": 1}},
        )  # fmt: skip
        ring = frame[frame["slug"] == chosen]
        if len(ring):
            figure.add_scatter(
                x=ring["x"], y=ring["y"], mode="markers", hoverinfo="skip", showlegend=False,
                marker={"size": 18, "symbol": "circle-open", "color": colour, "line": {"width": 2}},
            )  # fmt: skip
    top = 44 if len(frames) > 1 else 14
    figure.update_layout(
        height=HEIGHT - 14 + top,
        margin={"l": LEFT, "r": RIGHT, "t": top, "b": 48, "autoexpand": False},
        showlegend=len(frames) > 1,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hovermode="closest",
        dragmode=False,
    )
    if room is None:
        room = 0.08 * reach if len(set(at)) > 1 else 0.5
    figure.update_xaxes(
        title=x_title, tickmode="array", tickvals=at, ticktext=[inert(t) for t in labels],
        range=[min(at) - room, max(at) + room] if at else None,
        showgrid=False, zeroline=False, fixedrange=True, automargin=False,
    )  # fmt: skip
    figure.update_yaxes(
        title=y_title, gridcolor=FAINT, zeroline=False, fixedrange=True, automargin=False
    )
    return figure


def _errors(frame: pd.DataFrame, colour: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": (frame["high"] - frame["y"]).fillna(0),
        "arrayminus": (frame["y"] - frame["low"]).fillna(0),
        "color": colour,
        "thickness": 1.4,
        "width": 3,
    }


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
            z=cells, zmin=-most, zmax=most, colorscale=DIVERGING, xgap=1, ygap=1,
            hoverinfo="skip", hoverongaps=False,
            colorbar={
                "title": {"text": inert(unit), "side": "right"}, "thickness": 10, "x": 1.015,
                "lenmode": "pixels", "len": max(90, 30 * len(widths)), "nticks": 3,
            },
        )
    )  # fmt: skip
    y = [row[width] for width in frame["width"]]
    size = max(6, min(24, 620 // max(n_layers, 1)))
    figure.add_scatter(
        x=frame["start"], y=y, mode="markers", customdata=frame[["slug"]].to_numpy(),
        marker={"opacity": 0, "size": size, "maxdisplayed": 1}, hoverinfo="text",
        text=[inert(text) for text in frame["text"]],
    )  # fmt: skip
    sure = frame[frame["different"]]
    figure.add_scatter(
        x=sure["start"], y=[row[width] for width in sure["width"]], mode="markers",
        hoverinfo="skip", marker={"size": 4, "color": GREY},
    )  # fmt: skip
    ring = frame[frame["slug"] == chosen]
    if len(ring):
        figure.add_scatter(
            x=ring["start"], y=[row[width] for width in ring["width"]], mode="markers",
            hoverinfo="skip",
            marker={"size": size, "symbol": "square-open", "color": BLUE, "line": {"width": 3}},
        )  # fmt: skip
    figure.update_layout(
        height=58 + max(90, min(34, 460 // len(widths)) * len(widths)),
        margin={"l": LEFT, "r": RIGHT, "t": 10, "b": 48, "autoexpand": False},
        showlegend=False, dragmode=False, hovermode="closest",
    )  # fmt: skip
    figure.update_xaxes(
        title="first layer of the range", range=[-0.5, n_layers - 0.5], dtick=1 if n_layers <= 32 else 4,
        showgrid=False, zeroline=False, fixedrange=True, automargin=False,
    )  # fmt: skip
    figure.update_yaxes(
        title="layers", tickmode="array", tickvals=list(range(len(widths))),
        ticktext=[str(width) for width in widths], range=[-0.5, len(widths) - 0.5],
        showgrid=False, zeroline=False, fixedrange=True, automargin=False,
    )  # fmt: skip
    return figure
