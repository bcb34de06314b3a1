"""Figures of observed attention by layer and by head: arrays in, Plotly out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bidir_core.plots import BLUE, FAINT, GREEN, GREY, RED, inert

# First regime, second, and so on.
COLOURS = ((GREY, "circle"), (BLUE, "diamond"), (GREEN, "square"), (RED, "triangle-up"))
SCALE = "Viridis"
AXIS: dict[str, Any] = {
    "showgrid": False, "zeroline": False, "ticks": "", "fixedrange": True, "automargin": False,
}  # fmt: skip

Values = Sequence[float] | np.ndarray


class Line(NamedTuple):
    """One regime's values by layer, with an interval or a spread where there is one."""

    name: str
    values: Values
    low: Values | None = None
    high: Values | None = None


def by_layer(
    lines: Sequence[Line],
    title: str,
    *,
    groups: int = 1,
    skipped: int = 0,
    log: bool = False,
    percent: bool = True,
) -> go.Figure:
    """A measure against the layer: the first regime in grey, the second in blue, and so on.

    ``groups``: of tokens, each with a line a regime; those of the second are dotted. ``skipped``:
    first regimes that have no line here, so that the others keep their colours.
    """
    figure = go.Figure()
    in_group = max(1, len(lines) // groups)
    factor, unit = (100.0, " %") if percent else (1.0, "")
    for number, line in enumerate(lines):
        colour, symbol = COLOURS[(number % in_group + skipped) % len(COLOURS)]
        is_second = number >= in_group
        dash = "dot" if is_second else "solid"
        layers = np.arange(len(line.values))
        if line.low is not None and line.high is not None:
            figure.add_scatter(
                x=np.r_[layers, layers[::-1]],
                y=factor * np.r_[np.asarray(line.high), np.asarray(line.low)[::-1]],
                fill="toself", fillcolor=_clear(colour), line={"width": 0}, mode="lines",
                hoverinfo="skip", showlegend=False,
            )  # fmt: skip
        figure.add_scatter(
            x=layers, y=factor * np.asarray(line.values), name=inert(line.name),
            mode="lines+markers", line={"color": colour, "width": 2, "dash": dash},
            marker={"color": colour, "size": 7, "symbol": symbol + ("-open" if is_second else "")},
            hovertemplate=f"layer %{{x}}: %{{y:.3~g}}{unit}<extra>{inert(line.name)}</extra>",
        )  # fmt: skip
    figure.update_xaxes(
        title="layer", showgrid=False, zeroline=False, fixedrange=True, automargin=False
    )
    figure.update_yaxes(
        title=title, gridcolor=FAINT, zeroline=False, fixedrange=True, automargin=False,
        **({"type": "log", "dtick": 1} if log else {"rangemode": "tozero"}),
    )  # fmt: skip
    figure.update_layout(
        height=330, margin={"l": 60, "r": 10, "t": 10, "b": 44}, dragmode=False,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )  # fmt: skip
    return figure


def head_grid(
    panels: Sequence[np.ndarray],
    names: Sequence[str],
    *,
    selected: tuple[int, int] | None,
    percent: bool = True,
) -> go.Figure:
    """``[layer, head]`` values, a panel a regime, on one colour scale. Clicks: x head, y layer."""
    figure = make_subplots(
        cols=len(panels), shared_yaxes=True, horizontal_spacing=0.04,
        subplot_titles=[inert(name) for name in names],
    )  # fmt: skip
    top_margin = 34
    if len(panels) > 2:  # too narrow for a regime with its dials on one line
        top_margin = 34 + 16 * max(name.count(":") + name.count(",") for name in names)
        for note in figure.layout.annotations:
            note.update(
                font={"size": 12}, text=note.text.replace(":", ":<br>").replace(",", "<br>")
            )
    n_layers, n_heads = panels[0].shape
    factor, unit = (100.0, " %") if percent else (1.0, " nats")
    top = 100.0 if percent else max(float(panel.max()) for panel in panels)
    layer, head = (grid.reshape(-1) for grid in np.mgrid[0:n_layers, 0:n_heads])
    height = min(26, max(11, 520 // n_layers))
    for number, panel in enumerate(panels, start=1):
        figure.add_heatmap(
            z=np.round(factor * panel, 2).astype(np.float32), zmin=0, zmax=top, colorscale=SCALE,
            showscale=number == len(panels), hoverinfo="skip", xgap=1, ygap=1,
            colorbar={"ticksuffix": unit, "thickness": 12, "len": 1.0}, row=1, col=number,
        )  # fmt: skip
        figure.add_scatter(  # left undrawn, as those by token are
            x=head, y=layer, mode="markers", hoverinfo="text",
            marker={"opacity": 0, "size": 1.3 * height, "maxdisplayed": 1},
            text=[
                f"layer {i}, head {j}: {factor * panel[i, j]:.3g}{unit}"
                for i, j in zip(layer.tolist(), head.tolist(), strict=True)
            ],
            row=1, col=number, showlegend=False,
        )  # fmt: skip
        if selected is not None:
            figure.add_shape(
                type="rect", x0=selected[1] - 0.5, x1=selected[1] + 0.5, y0=selected[0] - 0.5,
                y1=selected[0] + 0.5, line={"color": RED, "width": 2.5}, row=1, col=number,
            )  # fmt: skip
    tick = _tick(n_heads) if len(panels) <= 2 else max(_tick(n_heads), n_heads // 2)
    figure.update_xaxes(title="head", **AXIS, range=[-0.5, n_heads - 0.5], dtick=tick, tickangle=0)
    figure.update_yaxes(**AXIS, range=[n_layers - 0.5, -0.5], dtick=_tick(n_layers))
    figure.update_yaxes(title="layer", col=1)
    figure.update_layout(
        height=top_margin + 56 + height * n_layers,
        dragmode=False,
        margin={"l": 50, "r": 10, "t": top_margin, "b": 46},
    )
    return figure


def _clear(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"


def _tick(n: int) -> int:
    return 1 if n <= 12 else 5 if n <= 60 else 10
