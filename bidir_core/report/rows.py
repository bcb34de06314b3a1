"""A chart of numbers with intervals as HTML, one row each: no script, any width, light and dark.

A row says its name and its numbers as text, so the chart needs no table beside it to be read.
``html/rows.css`` places label, plot and numbers beside one another or, on a narrow page, the plot
below the other two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from markupsafe import Markup

from bidir_core.common.formatting import minus
from bidir_core.data.item_texts import visible

# Told apart by shape and colour: a verdict, or whom an evaluation let look ahead.
Look = Literal["better", "worse", "equivalent", "undecided", "causal", "ahead", "leaky"]
STYLES = Path(__file__).with_name("html") / "rows.css"
TICKS = 8  # at most about so many


class Row(NamedTuple):
    """One number with its interval, as fractions; ``text`` is what stands beside it, and ``href``
    where its name leads."""

    label: str
    text: str
    value: float
    low: float | None = None
    high: float | None = None
    look: Look = "undecided"
    total: bool = False
    href: str = ""


def interval_rows(rows: Sequence[Row], *, reference: float | None, axis: str) -> Markup:
    """The chart; ``reference`` is marked by a line, ``axis`` says what the scale is (in 1/100)."""
    low, high = _ends(rows, reference)

    def place(value: float) -> float:
        return 100 * (100 * value - low) / (high - low)

    lines = [_row(row, place) for row in rows]
    step = _step(high - low)
    ticks = [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    scale = Markup("").join(
        Markup('<i style="left:{:.2f}%">{}</i>').format(place(tick / 100), minus(f"{tick:g}"))
        for tick in ticks
    )
    line = "" if reference is None else Markup(' style="--at:{:.2f}%"').format(place(reference))
    return Markup(
        '<div class="rows"><div class="grid"{}>{}'
        '<div class="row axis" aria-hidden="true"><span class="track">{}</span></div></div>'
        '<p class="scale">{}</p></div>'
    ).format(line, Markup("").join(lines), scale, axis)


def _row(row: Row, place: Callable[[float], float]) -> Markup:
    bar, name = Markup(""), Markup("{}").format(visible(row.label))
    if row.href:
        name = Markup('<a href="{}" target="_self">{}</a>').format(row.href, name)
    if row.low is not None and row.high is not None:
        start, end = place(row.low), place(row.high)
        bar = Markup('<i class="bar" style="left:{:.2f}%;width:{:.2f}%"></i>').format(
            start, end - start
        )
    return Markup(
        '<div class="row {}{}"><span class="name">{}</span><span class="track" aria-hidden="true">{}'
        '<i class="mark" style="left:{:.2f}%"></i></span><span class="number">{}</span></div>'
    ).format(
        row.look,
        " total" if row.total else "",
        name,
        bar,
        place(row.value),
        visible(row.text),
    )


def _ends(rows: Sequence[Row], reference: float | None) -> tuple[float, float]:
    """The scale's ends in 1/100, with room so that no interval touches the frame."""
    values = [v for row in rows for v in (row.value, row.low, row.high) if v is not None]
    values += [] if reference is None else [reference]
    low, high = 100 * min(values), 100 * max(values)
    room = max(0.06 * (high - low), 0.5)
    return low - room, high + room


def _step(width: float) -> float:
    """The round distance between ticks that gives about ``TICKS`` of them."""
    exact = width / TICKS
    power = 10.0 ** math.floor(math.log10(exact))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= exact)
