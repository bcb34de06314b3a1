"""The Lab page's charts: dose and response, and the map of layers. A click chooses a point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from bidir_core.lab import curves as layout
from bidir_core.lab import plots
from bidir_ui import lab_data, url, widgets
from bidir_ui.lab_data import MEASURES, UNITS, Lab


def any_to_draw(lab: Lab) -> bool:
    """Whether a dial or a layer range was varied."""
    return bool(layout.curves(lab.points, lab.usual) or layout.layer_ranges(lab.points, lab.usual))


def _on_click(key: str) -> Callable[[], None]:
    def clicked() -> None:
        event: Any = st.session_state.get(key)
        points = event["selection"]["points"] if event else []
        data = points[0].get("customdata") if points else None
        if data:
            url.put(point=data[0] if isinstance(data, (list, tuple)) else data)

    return clicked


def _clickable(figure: Any, alt: str, key: str) -> None:
    widgets.chart(
        figure, alt, key=key, on_select=_on_click(key), selection_mode="points", width="stretch"
    )


def dose_response(lab: Lab, measure: str, slug: str) -> None:
    """One chart per dial that was varied, all else equal."""
    found = layout.curves(lab.points, lab.usual)
    if not found:
        return
    by_dial: dict[str, list[layout.Curve]] = {}
    for curve in found:
        by_dial.setdefault(curve.dial, []).append(curve)
    widgets.heading("Dose and response")
    widgets.note(
        "95 % intervals"
        + (", paired with causal. " if measure != "value" else " of each point alone. ")
        + "Click a point to see what it is and to open it in Compare or Flips."
    )
    columns = st.columns(2 if len(by_dial) > 1 else 1, gap="medium")
    for number, (dial, group) in enumerate(by_dial.items()):
        ticks = dict(tick for curve in group for tick in curve.ticks)
        frames = [
            (curve.name or "nothing else set", lab_data.frame(lab, list(curve.places), measure))
            for curve in group[:4]
        ]
        figure = plots.curves(
            frames, sorted(ticks.items()), x_title=group[0].axis, y_title=_y_title(lab, measure),
            levels=_levels(lab, measure), chosen=slug,
        )  # fmt: skip
        with columns[number % len(columns)]:
            _clickable(
                figure, f"{MEASURES[measure]} over {group[0].axis}; the table below has the numbers.",
                key=f"dose-{dial}-{measure}-{lab.metric}-{lab.info.id}",
            )  # fmt: skip
            if len(group) > 4:
                widgets.note(f"{len(group) - 4} more lines are in the table.")


def _y_title(lab: Lab, measure: str) -> str:
    metric = "" if lab.metric == "acc" else f" ({lab.metric})"
    return {
        "delta": f"points to causal{metric}",
        "value": f"macro accuracy, %{metric}",
        "removed": f"% of the damage removed{metric}",
    }[measure]


def _levels(lab: Lab, measure: str) -> list[tuple[float, str]]:
    """Where causal and bidirectional stand in the measure."""
    levels = []
    for slug in ("causal", "bidirectional"):
        value = lab_data.measured(lab, slug, measure)[0] if lab.point(slug) else float("nan")
        if not np.isnan(value):
            levels.append((value, slug))
    return levels


def layers(lab: Lab, measure: str, slug: str) -> None:
    """A map of layer ranges, and the same as lines with intervals."""
    for others, ranges in layout.layer_ranges(lab.points, lab.usual).items():
        widgets.heading("Which layers" + (f", with {others}" if others else ""))
        widgets.note(
            "Each cell: bidirectional in that range of layers only, causal in the others. "
            + ("A dot: its interval excludes 0. " if measure == "delta" else "")
            + "Click a cell."
        )
        shown = (
            "delta" if measure == "value" else measure
        )  # a map needs a middle that means something
        rows = []
        for one, start, width in ranges:
            y, low, high = lab_data.measured(lab, one, shown)
            sure = shown == "delta" and (low > 0 or high < 0)
            rows.append(
                {"slug": one, "start": start, "width": width, "y": y, "different": sure,
                 "text": lab_data.text(lab, one)}
            )  # fmt: skip
        frame = pd.DataFrame(rows)
        key = f"{shown}-{lab.metric}-{others}-{lab.info.id}"
        _clickable(
            plots.layer_map(frame, lab.n_layers, unit=UNITS[shown], chosen=slug),
            "Layer ranges by first layer and number of layers; the table below has the numbers.",
            key=f"map-{key}",
        )
        _layer_lines(lab, ranges, measure, slug, key)


def _layer_lines(
    lab: Lab, ranges: list[tuple[str, int, int]], measure: str, slug: str, key: str
) -> None:
    """Windows of the three commonest widths, with intervals."""
    by_width: dict[int, list[tuple[str, float]]] = {}
    for one, start, width in sorted(ranges, key=lambda row: row[1]):
        by_width.setdefault(width, []).append((one, float(start)))
    wide = sorted(by_width, key=lambda width: -len(by_width[width]))[:3]
    wide = sorted(width for width in wide if len(by_width[width]) > 1)
    if not wide:
        return
    frames = [
        (f"{width} layer{'s' if width > 1 else ''}", lab_data.frame(lab, by_width[width], measure))
        for width in wide
    ]
    step = 1 if lab.n_layers <= 32 else 4
    ticks = [(float(n), str(n) if n % step == 0 else "") for n in range(lab.n_layers)]
    figure = plots.curves(
        frames, ticks, x_title="first layer of the range", y_title=_y_title(lab, measure),
        levels=_levels(lab, measure), chosen=slug, room=0.5,
    )  # fmt: skip
    _clickable(
        figure, "The same ranges as lines with 95 % intervals.", key=f"lines-{key}-{measure}"
    )
