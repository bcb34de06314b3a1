"""Several runs against one: a chart of paired differences with its table."""

from __future__ import annotations

from typing import Any

import pandas as pd

from bidir_core import plots
from bidir_ui import fmt, html, seeds, widgets
from bidir_ui import labels as naming
from bidir_ui.data import RunInfo


def against(
    base: RunInfo, runs: list[RunInfo], labels: dict[str, str]
) -> tuple[pd.DataFrame, list[Any]]:
    """Paired differences of several runs to one: the frame for ``plots.dots``, and table rows.

    Runs of several training seeds are one row. ``labels``: by the id of any run of a row.
    """
    dots, rows = [], []
    groups = seeds.groups(runs)

    def name(run: RunInfo) -> str:
        return labels.get(run.id, run.label)

    extra = naming.apart((group.some for group in groups), name)
    for group in groups:
        row = seeds.difference(seeds.Group((base,)), group)
        label = name(group.some) + extra[group.some.id]
        if len(group.runs) > 1:
            label = f"{label}, {len(group.runs)} seeds"
        elif group.some.train_seed:
            label = f"{label}, seed {group.some.train_seed}"
        if row is None:
            rows.append((label, "does not pair", fmt.NONE, fmt.NONE, fmt.NONE, fmt.NONE))
            continue
        colour, symbol = plots.GREY, "circle"
        if row.verdict == "different":
            down = row.delta < 0
            colour, symbol = (
                (plots.RED, "triangle-left") if down else (plots.GREEN, "triangle-right")
            )
        dots.append(
            {
                "label": html.visible(fmt.clip(label)), "value": row.delta, "low": row.low, "high": row.high,
                "text": f"{fmt.points(row.delta)}  {fmt.interval(row.low, row.high)}",
                "colour": colour, "symbol": symbol,
            }
        )  # fmt: skip
        rows.append(
            (
                label, fmt.count(row.n), fmt.percent(row.acc_b), fmt.points(row.delta),
                fmt.interval(row.low, row.high), row.words,
            )
        )  # fmt: skip
    return pd.DataFrame(dots), rows


def show(base: RunInfo, runs: list[RunInfo], labels: dict[str, str], key: str) -> list[str]:
    """Draw chart and table; each row's verdict in words."""
    frame, rows = against(base, runs, labels)
    if not frame.empty:
        widgets.chart(
            plots.dots(frame, title="Macro accuracy against stage 1, points (95 % interval)", reference=0.0),
            "Macro accuracy of each run minus stage 1, with intervals; the table below has the numbers.",
            key=key,
        )  # fmt: skip
    head = ("Run", "n", "Macro acc", "Difference, points", "95 % interval", "In words")
    html.show(widgets.table(head, rows, left=(0, 5)))
    return [str(row[5]) for row in rows]
