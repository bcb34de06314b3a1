"""Figures of observed attention by token: arrays in, Plotly out.

Weights are drawn on a logarithmic colour scale. A cell that the regime forbids has no colour at
all, so that "may not" and "hardly does" look different; the upper triangle is always drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sequential
from plotly.subplots import make_subplots

from bidir_core.attend_plots import AXIS, SCALE
from bidir_core.plots import BLUE, RED, inert

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
    # One byte a cell is all the colours there are, and a quarter of the page's weight.
    level = 1 + 254 * (np.clip(z, low, high) - low) / (high - low)
    figure.add_heatmap(
        z=np.where(allowed, level.round(), 0).astype(np.uint8), zmin=0, zmax=255,
        colorscale=_with_hidden(scale), hoverinfo="skip",
        xgap=1 if total <= 60 else 0, ygap=1 if total <= 60 else 0,
        colorbar={
            "tickvals": [1 + 254 * (t - low) / (high - low) for t, _ in ticks],
            "ticktext": [t for _, t in ticks], "thickness": 12,
            "orientation": "h", "y": -0.02, "yanchor": "top", "len": 0.9,
        },
    )  # fmt: skip
    _clickable(figure, first if minus is None else first - minus, total, side)
    line: dict[str, Any] = {"type": "line", "line": {"color": RED, "width": 1.5}}
    border, end = n_prefix - 0.5, total - 0.5
    shapes = [
        line | {"x0": border, "x1": border, "y0": -0.5, "y1": end},
        line | {"x0": -0.5, "x1": end, "y0": border, "y1": border},
    ]
    if cell is not None:
        query, key = cell
        shapes.append(
            {"type": "rect", "x0": key - 0.5, "x1": key + 0.5, "y0": query - 0.5, "y1": query + 0.5,
             "line": {"color": RED, "width": 2}}
        )  # fmt: skip
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
    figure.update_layout(
        height=side + (170 if total <= ROOMY else 110), dragmode=False,
        margin={"l": 104 if total <= ROOMY else 64, "r": 10, "t": 100 if total <= ROOMY else 50, "b": 60},
        showlegend=False,
    )  # fmt: skip
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
        rows=len(panels), shared_xaxes=True, vertical_spacing=0.1 if len(panels) > 1 else 0,
        subplot_titles=[inert(name) for name in names],
    )  # fmt: skip
    n_layers = len(panels[0])
    if log:
        shade: dict[str, Any] = {
            "zmin": -4, "zmax": 0, "colorscale": SCALE,
            "colorbar": {
                "tickvals": list(range(-4, 1)),
                "ticktext": [f"{100 * 10.0**e:g} %" for e in range(-4, 1)], "thickness": 12,
            },
        }  # fmt: skip
    else:
        least = min(0.0, *(float(np.nanmin(panel)) for panel in panels))
        shade = {"zmin": least, "zmax": 1, "colorscale": SCALE, "colorbar": {"thickness": 12}}
    for number, panel in enumerate(panels, start=1):
        z = np.log10(np.maximum(panel, 1e-4)) if log else panel
        unit = " %" if log else ""
        figure.add_heatmap(
            z=z.astype(np.float32).round(3), showscale=number == 1, row=number, col=1, **shade,
            customdata=((100 * panel if log else panel).astype(np.float32)),
            hovertemplate=f"layer %{{y}}, %{{x}}: %{{customdata:.3g}}{unit}<extra>{inert(label)}</extra>",
        )  # fmt: skip
        figure.add_vline(x=n_prefix - 0.5, line={"color": RED, "width": 1.5}, row=number, col=1)
    _token_axes(figure, pieces, rows=False)
    for row in range(1, len(panels)):  # one row of labels serves all panels
        figure.update_xaxes(showticklabels=False, row=row, col=1)
    figure.update_yaxes(**AXIS, title="layer", range=[n_layers - 0.5, -0.5])
    body = min(16, max(6, 260 // n_layers)) * n_layers
    figure.update_layout(
        height=(body + 34) * len(panels) + (80 if len(pieces) <= ROOMY else 36), dragmode=False,
        margin={"l": 50, "r": 10, "t": 30, "b": 80 if len(pieces) <= ROOMY else 36}, showlegend=False,
    )  # fmt: skip
    return figure


_VIRIDIS: list[list[Any]] = [[at / 9, colour] for at, colour in enumerate(sequential.Viridis)]


def _clickable(figure: go.Figure, values: np.ndarray, total: int, side: int) -> None:
    """Heat maps return no clicks: a layer of points does, and shows the value. All but one of them
    are left undrawn, which is 20 times faster than drawing them invisibly and answers the same."""
    step = _step(total)
    query, key = (grid.reshape(-1) for grid in np.mgrid[0:total:step, 0:total:step])
    figure.add_scatter(
        x=key.astype(np.int16), y=query.astype(np.int16), mode="markers",
        marker={"opacity": 0, "size": max(4.0, side * step / total), "maxdisplayed": 1},
        customdata=(100 * values[query, key]).astype(np.float32),
        hovertemplate="%{y} → %{x}<br>%{customdata:.3g} %<extra></extra>",
    )  # fmt: skip


def _step(total: int) -> int:
    """Every how manyth row and column can be clicked."""
    return -(-total // MAX_CLICKS)


def _token_axes(
    figure: go.Figure, pieces: Sequence[str], *, rows: bool = True, every: int = 1
) -> None:
    """Tokens as labels where there is room. Where there is none they still name what is hovered:
    Plotly takes an axis' tick texts for that, shown or not. ``every``: those that can be hovered."""
    total = len(pieces)
    named = list(range(0, total, every))
    texts = [f"{i} {_shown(pieces[i])}" for i in named]
    roomy = total <= ROOMY
    axis = AXIS | {"tickmode": "array", "tickvals": named, "ticktext": texts}
    figure.update_xaxes(
        **axis, showticklabels=roomy, tickangle=-60, range=[-0.5, total - 0.5],
        tickfont={"size": 10 if total > 28 else 12},
    )  # fmt: skip
    if rows:
        figure.update_yaxes(
            **axis, showticklabels=roomy, tickfont={"size": 10 if total > 28 else 12}
        )
    if not roomy:
        step = next(s for s in (10, 20, 50, 100, 200, 500, 1000, 5000) if total / s <= 8)
        notes = []
        for position in range(0, total, step):
            note: dict[str, Any] = {"text": str(position), "showarrow": False}
            across = {"x": position, "yref": "paper", "y": 1 if rows else 0,
                      "yanchor": "bottom" if rows else "top"}  # fmt: skip
            notes.append(note | across)
            if rows:
                notes.append(note | {"y": position, "xref": "paper", "x": 0, "xanchor": "right"})
        # All at once: one by one takes Plotly half a second.
        figure.update_layout(annotations=[*figure.layout.annotations, *notes])


def _with_hidden(scale: list[list[Any]]) -> list[list[Any]]:
    """A colour scale for levels 0 to 255 of which 0 is a cell that may not be seen at all."""
    edge = 0.5 / 255
    return [[0, HIDDEN], [edge, HIDDEN], *([edge + (1 - edge) * at, c] for at, c in scale)]


def _signed_log(values: np.ndarray) -> np.ndarray:
    """-1..1 to -1..1: logarithmic from 0.1 point up to 100 points, 0 below."""
    size = np.log10(np.maximum(np.abs(values), 1e-3)) / 3 + 1
    return np.sign(values) * size


def _shown(piece: str) -> str:
    text = piece.replace(" ", "·").replace("\n", "⏎")
    return inert(text if len(text) <= 12 else text[:11] + "…")
