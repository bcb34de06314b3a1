"""Frames in, Plotly figures out. Colours are safe for colour-blind readers in light and dark,
and never carry a meaning alone: a symbol or a word stands beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

GREY, BLUE, RED, GREEN = "#7f7f7f", "#0072B2", "#D55E00", "#009E73"
# By code of a training objective: 3B, its control, distillation, the leaky one.
OBJECTIVE_COLOURS = {"3B": BLUE, "3C": GREY, "distill": GREEN, "3A": RED}
FAINT = "rgba(127,127,127,0.28)"
# For axes that stay as they are, without a grid. Letting the browser measure the labels for a margin
# takes twice as long.
PLAIN_AXIS: dict[str, Any] = {
    "showgrid": False,
    "zeroline": False,
    "fixedrange": True,
    "automargin": False,
    "ticklabeloverflow": "allow",
}
GRID_AXIS = PLAIN_AXIS | {"showgrid": True, "gridcolor": FAINT}
MASK_COLOURS = ("rgba(127,127,127,0.10)", GREY, BLUE, RED)  # hidden, back, ahead, lost


def lay_out(
    figure: go.Figure, height: float, margins: tuple[float, float, float, float], **more: Any
) -> None:
    """A figure's height and fixed margins (left, right, top, bottom), in pixels."""
    margin = dict(zip("lrtb", margins, strict=True))
    figure.update_layout(
        **{"height": height, "margin": margin, "dragmode": False, "showlegend": False, **more}
    )


def inert(text: object) -> str:
    """Text that Plotly shows as it is: its labels otherwise read a little HTML, links included."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def ink(figure: go.Figure, colour: str, soft: str) -> go.Figure:
    """Colour a figure's words for the page's theme: labels in ``colour``, axes in ``soft``.

    A tick size that the figure chose itself stays. A figure already in this colour is left alone.
    """
    if figure.layout.font.color == colour:
        return figure
    figure.update_layout(font={"color": colour})  # annotations inherit it
    for axes, inked, size in (
        (figure.select_xaxes(), soft, 12),
        (figure.select_yaxes(), colour, 13),
    ):
        for axis in axes:
            axis.tickfont.update(color=inked, size=axis.tickfont.size or size)
            axis.title.font.update(color=soft, size=13)
    return figure


def mask(
    cells: np.ndarray, labels: Sequence[str], n_prefix: int, names: Sequence[str], side: int = 600
) -> go.Figure:
    """Who sees whom as a heat map, ``side`` pixels square; the upper triangle is always drawn.

    ``cells``: int [query, key], an index into ``names``, whose colours are :data:`MASK_COLOURS`.
    Clicks: x key, y query; above 128 tokens they land on a grid of at most 96 a side.
    """
    total = len(labels)
    scale = []
    for index, colour in enumerate(MASK_COLOURS[: len(names)]):
        scale += [[index / len(names), colour], [(index + 1) / len(names), colour]]
    gap = 1 if total <= 80 else 0
    figure = go.Figure(
        go.Heatmap(
            z=np.asarray(cells, dtype=np.int8),
            zmin=-0.5,
            zmax=len(names) - 0.5,
            colorscale=scale,
            showscale=False,
            xgap=gap,
            ygap=gap,
            hoverinfo="skip",
        )
    )
    step = 1 if total <= 128 else -(-total // 96)
    query, key = (grid.reshape(-1) for grid in np.mgrid[0:total:step, 0:total:step])
    texts = None
    if total <= 64:  # beyond this the hover texts weigh more than the picture
        texts = [
            f"{q} {shown_token(labels[q])} · {names[cells[q, k]]} · {k} {shown_token(labels[k])}"
            for q, k in zip(query.tolist(), key.tolist(), strict=True)
        ]
    size = max(4.0, side * step / total)
    add_clickable(figure, key, query, size, text=texts, hoverinfo="text" if texts else "none")
    figure.update_layout(shapes=prompt_borders(n_prefix, total))
    axis = {"showgrid": False, "zeroline": False, "ticks": ""}
    if total <= side / 12.5:
        axis |= {"tickmode": "array", "tickvals": list(range(total))}
        axis["ticktext"] = [shown_token(label) for label in labels]
    figure.update_xaxes(
        **axis, title="is seen (key)", side="top", tickangle=-60, range=[-0.5, total - 0.5]
    )
    figure.update_yaxes(
        **axis,
        title="sees (query)",
        range=[total - 0.5, -0.5],
        scaleanchor="x",
        constrain="domain",
        constraintoward="top",
        automargin=True,
    )
    figure.update_xaxes(constrain="domain")
    lay_out(figure, side + 110, (10, 40, 100, 10))
    return figure


def add_clickable(figure: go.Figure, x: Any, y: Any, size: float, **options: Any) -> None:
    """Lay invisible points over a heat map, which by itself returns no clicks.

    All but one are left undrawn: 20 times faster than drawing them invisibly, and clicks and hover
    texts are the same.
    """
    marker = {"opacity": 0, "size": size, "maxdisplayed": 1}
    figure.add_scatter(x=x, y=y, mode="markers", marker=marker, showlegend=False, **options)


def prompt_borders(n_prefix: int, total: int) -> list[dict[str, Any]]:
    """The lines between prompt and continuation in a picture of ``total`` by ``total`` tokens."""
    border, end = n_prefix - 0.5, total - 0.5
    line = {"type": "line", "line": {"color": RED, "width": 1.5}}
    return [
        line | {"x0": border, "x1": border, "y0": -0.5, "y1": end},
        line | {"x0": -0.5, "x1": end, "y0": border, "y1": border},
    ]


def shown_token(label: str) -> str:
    """A token for an axis: spaces visible, markup inert, at most 12 characters."""
    text = label.replace(" ", "·").replace("\n", "⏎")
    return inert(text if len(text) <= 12 else text[:11] + "…")
