"""Figures of observed attention by layer and by head: arrays in, Plotly out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sequential
from plotly.subplots import make_subplots

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
    prompt_borders,
    shown_token,
)

# First regime, second, and so on.
COLOURS = ((GREY, "circle"), (BLUE, "diamond"), (GREEN, "square"), (RED, "triangle-up"))
SCALE = "Viridis"
AXIS = PLAIN_AXIS | {"ticks": ""}
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

    ``groups``: of tokens, each with a line a regime: the first token's are solid and in the legend,
    the others' are dotted. ``skipped``: first regimes that have no line here, so that the others
    keep their colours.
    """
    figure = go.Figure()
    in_group = max(1, len(lines) // groups)
    factor, unit = (100.0, " %") if percent else (1.0, "")
    for number, line in enumerate(lines):
        colour, symbol = COLOURS[(number % in_group + skipped) % len(COLOURS)]
        is_second = number >= in_group
        dash = "dot" if is_second else "solid"
        whose = "" if groups == 1 else ", other tokens" if is_second else ", first token"
        layers = np.arange(len(line.values))
        if line.low is not None and line.high is not None:
            figure.add_scatter(
                x=np.r_[layers, layers[::-1]],
                y=factor * np.r_[np.asarray(line.high), np.asarray(line.low)[::-1]],
                fill="toself",
                fillcolor=_clear(colour),
                line={"width": 0},
                mode="lines",
                hoverinfo="skip",
                showlegend=False,
            )
        figure.add_scatter(
            x=layers,
            y=factor * np.asarray(line.values),
            name=inert(line.name),
            showlegend=not is_second,
            mode="lines+markers",
            line={"color": colour, "width": 2, "dash": dash},
            marker={"color": colour, "size": 7, "symbol": symbol + ("-open" if is_second else "")},
            hovertemplate=f"layer %{{x}}: %{{y:.3~g}}{unit}<extra>{inert(line.name)}{whose}</extra>",
        )
    scale = {"type": "log", "dtick": 1} if log else {"rangemode": "tozero"}
    figure.update_xaxes(title="layer", **PLAIN_AXIS)
    figure.update_yaxes(title=title, **GRID_AXIS | scale)
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    lay_out(figure, 330, (60, 10, 10, 44), showlegend=None, legend=legend)
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
        cols=len(panels),
        shared_yaxes=True,
        horizontal_spacing=0.04,
        subplot_titles=[inert(name.removeprefix("bidirectional:")) for name in names],
    )
    top_margin = 34
    if len(panels) > 2:  # on a phone too narrow for a regime across
        top_margin = 70
        figure.update_annotations(font_size=12, textangle=-40, xanchor="left", xshift=-12)
    n_layers, n_heads = panels[0].shape
    factor, unit = (100.0, " %") if percent else (1.0, " nats")
    top = 100.0 if percent else max(float(panel.max()) for panel in panels)
    layer, head = (grid.reshape(-1) for grid in np.mgrid[0:n_layers, 0:n_heads])
    height = min(26, max(11, 520 // n_layers))
    for number, panel in enumerate(panels, start=1):
        figure.add_heatmap(
            z=np.round(factor * panel, 2).astype(np.float32),
            zmin=0,
            zmax=top,
            colorscale=SCALE,
            showscale=number == len(panels),
            hoverinfo="skip",
            xgap=1,
            ygap=1,
            colorbar={"ticksuffix": unit, "thickness": 12, "len": 1.0},
            row=1,
            col=number,
        )
        texts = [
            f"layer {i}, head {j}: {factor * panel[i, j]:.3g}{unit}"
            for i, j in zip(layer.tolist(), head.tolist(), strict=True)
        ]
        size, place = 1.3 * height, {"row": 1, "col": number}
        add_clickable(figure, head, layer, size, text=texts, hoverinfo="text", **place)
        if selected is not None:
            outline = _outline(*selected) | {"line": {"color": RED, "width": 2.5}}
            figure.add_shape(**outline, row=1, col=number)
    tick = _tick(n_heads) if len(panels) <= 2 else max(_tick(n_heads), n_heads // 2)
    figure.update_xaxes(title="head", **AXIS, range=[-0.5, n_heads - 0.5], dtick=tick, tickangle=0)
    figure.update_yaxes(**AXIS, range=[n_layers - 0.5, -0.5], dtick=_tick(n_layers))
    figure.update_yaxes(title="layer", col=1)
    lay_out(figure, top_margin + 56 + height * n_layers, (50, 10, top_margin, 46), showlegend=None)
    return figure


def _outline(row: int, column: int) -> dict[str, Any]:
    """A rectangle around a cell."""
    ends = {"x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5, "y1": row + 0.5}
    return {"type": "rect", **ends}


def _clear(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"


def _tick(n: int) -> int:
    return 1 if n <= 12 else 5 if n <= 60 else 10


# Figures of observed attention by token: arrays in, Plotly out.

LOWEST = -5.0  # log10 of the smallest weight told apart: 0.001 %
DIVERGING = [[0, RED], [0.5, "rgba(127,127,127,0.40)"], [1, BLUE]]
HIDDEN = "rgba(127,127,127,0.16)"
ROOMY = 44  # tokens that still have room for their labels
MAX_CLICKS = 160  # clickable cells a side


def weights(
    first: np.ndarray,
    allowed: np.ndarray,
    pieces: Sequence[str],
    n_prefix: int,
    *,
    minus: np.ndarray | None = None,
    cell: tuple[int, int] | None = None,
    side: int = 520,
) -> go.Figure:
    """One head's weights ``[query, key]``, or their difference from ``minus``, log colours.

    ``allowed``: bool, cells without it stay bare. Clicks: x key, y query; above
    :data:`MAX_CLICKS` tokens they land on a grid. ``cell`` (query, key) is outlined.
    """
    total = len(pieces)
    figure = go.Figure()
    if minus is None:
        z, low, scale = np.log10(np.maximum(first, 10.0**LOWEST)), LOWEST, _VIRIDIS
        high = 0.0
        ticks = [(float(e), f"{100 * 10.0**e:g} %") for e in range(int(LOWEST), 1)]
    else:
        z, low, scale = _signed_log(first - minus), -1.0, DIVERGING
        high = 1.0
        ticks = [
            (float(_signed_log(np.array(d))), f"{100 * d:+g}" if d else "0")
            for d in (-1, -0.1, -0.01, 0, 0.01, 0.1, 1)
        ]
    # One byte a cell: as many levels as the scale has colours, in a quarter of the bytes.
    level = 1 + 254 * (np.clip(z, low, high) - low) / (high - low)
    figure.add_heatmap(
        z=np.where(allowed, level.round(), 0).astype(np.uint8),
        zmin=0,
        zmax=255,
        colorscale=_with_hidden(scale),
        hoverinfo="skip",
        xgap=1 if total <= 60 else 0,
        ygap=1 if total <= 60 else 0,
        colorbar={
            "tickvals": [1 + 254 * (t - low) / (high - low) for t, _ in ticks],
            "ticktext": [t for _, t in ticks],
            "thickness": 12,
            "orientation": "h",
            "y": -0.02,
            "yanchor": "top",
            "len": 0.9,
        },
    )
    step = _step(total)
    query, key = (grid.reshape(-1) for grid in np.mgrid[0:total:step, 0:total:step])
    shown = first if minus is None else first - minus
    add_clickable(
        figure,
        key.astype(np.int16),
        query.astype(np.int16),
        max(4.0, side * step / total),
        customdata=(100 * shown[query, key]).astype(np.float32),
        hovertemplate="%{y} → %{x}<br>%{customdata:.3g} %<extra></extra>",
    )
    shapes = prompt_borders(n_prefix, total)
    if cell is not None:
        shapes.append(_outline(*cell) | {"line": {"color": RED, "width": 2}})
    figure.update_layout(shapes=shapes)
    _token_axes(figure, pieces, every=_step(total))
    figure.update_xaxes(title="is seen (key)", side="top", constrain="domain")
    figure.update_yaxes(
        title="sees (query)",
        range=[total - 0.5, -0.5],
        scaleanchor="x",
        constrain="domain",
        title_standoff=4 if total <= ROOMY else 32,
    )
    if total <= ROOMY:
        lay_out(figure, side + 170, (104, 10, 100, 60))
    else:
        lay_out(figure, side + 110, (64, 10, 50, 60))
    return figure


def layer_map(
    panels: Sequence[np.ndarray],
    names: Sequence[str],
    pieces: Sequence[str],
    n_prefix: int,
    *,
    log: bool = True,
    label: str = "",
) -> go.Figure:
    """``[layer, token]`` values, panels one above the other on one colour scale.

    ``log``: shares of 1 on a log scale; otherwise numbers from their least to 1 (cosines).
    """
    figure = make_subplots(
        rows=len(panels),
        shared_xaxes=True,
        vertical_spacing=0.1 if len(panels) > 1 else 0,
        subplot_titles=[inert(name) for name in names],
    )
    n_layers = len(panels[0])
    if log:
        shade: dict[str, Any] = {
            "zmin": -4,
            "zmax": 0,
            "colorscale": SCALE,
            "colorbar": {
                "tickvals": list(range(-4, 1)),
                "ticktext": [f"{100 * 10.0**e:g} %" for e in range(-4, 1)],
                "thickness": 12,
            },
        }
    else:
        least = min(0.0, *(float(np.nanmin(panel)) for panel in panels))
        shade = {"zmin": least, "zmax": 1, "colorscale": SCALE, "colorbar": {"thickness": 12}}
    for number, panel in enumerate(panels, start=1):
        z = np.log10(np.maximum(panel, 1e-4)) if log else panel
        unit = " %" if log else ""
        figure.add_heatmap(
            z=z.astype(np.float32).round(3),
            showscale=number == 1,
            row=number,
            col=1,
            **shade,
            customdata=((100 * panel if log else panel).astype(np.float32)),
            hovertemplate=f"layer %{{y}}, %{{x}}: %{{customdata:.3g}}{unit}<extra>{inert(label)}</extra>",
        )
        figure.add_vline(x=n_prefix - 0.5, line={"color": RED, "width": 1.5}, row=number, col=1)
    _token_axes(figure, pieces, rows=False)
    for row in range(1, len(panels)):  # one row of labels serves all panels
        figure.update_xaxes(showticklabels=False, row=row, col=1)
    figure.update_yaxes(**AXIS, title="layer", range=[n_layers - 0.5, -0.5])
    body = min(16, max(6, 260 // n_layers)) * n_layers
    labels = 80 if len(pieces) <= ROOMY else 36
    lay_out(figure, (body + 34) * len(panels) + labels, (50, 10, 30, labels))
    return figure


_VIRIDIS: list[list[Any]] = [[at / 9, colour] for at, colour in enumerate(sequential.Viridis)]


def _step(total: int) -> int:
    """Of the rows and columns, one in so many can be clicked."""
    return -(-total // MAX_CLICKS)


def _token_axes(
    figure: go.Figure, pieces: Sequence[str], *, rows: bool = True, every: int = 1
) -> None:
    """Tokens as labels where there is room. Where there is none they still name what is hovered:
    Plotly takes an axis' tick texts for that, shown or not. ``every``: those that can be hovered."""
    total = len(pieces)
    named = list(range(0, total, every))
    texts = [f"{i} {shown_token(pieces[i])}" for i in named]
    roomy = total <= ROOMY
    axis = AXIS | {"tickmode": "array", "tickvals": named, "ticktext": texts}
    figure.update_xaxes(
        **axis,
        showticklabels=roomy,
        tickangle=-60,
        range=[-0.5, total - 0.5],
        tickfont={"size": 10 if total > 28 else 12},
    )
    if rows:
        figure.update_yaxes(
            **axis, showticklabels=roomy, tickfont={"size": 10 if total > 28 else 12}
        )
    if not roomy:
        step = next(s for s in (10, 20, 50, 100, 200, 500, 1000, 5000) if total / s <= 8)
        notes = []
        for position in range(0, total, step):
            note: dict[str, Any] = {"text": str(position), "showarrow": False}
            across = {
                "x": position,
                "yref": "paper",
                "y": 1 if rows else 0,
                "yanchor": "bottom" if rows else "top",
            }
            notes.append(note | across)
            if rows:
                notes.append(note | {"y": position, "xref": "paper", "x": 0, "xanchor": "right"})
        # In one update: one by one takes Plotly half a second.
        figure.update_layout(annotations=[*figure.layout.annotations, *notes])


def _with_hidden(scale: list[list[Any]]) -> list[list[Any]]:
    """A colour scale for levels 0 to 255 of which 0 is a cell that may not be seen at all."""
    edge = 0.5 / 255
    return [[0, HIDDEN], [edge, HIDDEN], *([edge + (1 - edge) * at, c] for at, c in scale)]


def _signed_log(values: np.ndarray) -> np.ndarray:
    """-1..1 to -1..1: logarithmic from 0.1 point up to 100 points, 0 below."""
    size = np.log10(np.maximum(np.abs(values), 1e-3)) / 3 + 1
    return np.sign(values) * size
