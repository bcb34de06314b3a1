"""The paired difference within slices of the items: by prefix length, choice length, gold."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bidir_core import plots, stats
from bidir_ui import fmt

MIN_ITEMS = 20  # an interval on fewer items says nothing anyone should read


def bands(values: pd.Series, count: int = 5) -> pd.Series:
    """Labels ``A to B`` that cut integer values into about ``count`` equally filled bands."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, count + 1)).astype(int))
    if len(edges) < 2:
        return pd.Series(f"{edges[0]}", index=values.index)
    last = len(edges) - 2
    index = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, last)
    names = [
        f"{edges[i]} to {edges[i + 1] - (i < last)}"
        if edges[i] < edges[i + 1] - (i < last)
        else f"{edges[i]}"
        for i in range(last + 1)
    ]
    labels = pd.Categorical.from_codes(index, categories=names, ordered=True)
    return pd.Series(labels, index=values.index)


def differences(frame: pd.DataFrame, labels: pd.Series) -> pd.DataFrame:
    """One row a label, pooled over tasks, for ``plots.dots``; small groups are left out."""
    rows = []
    for label, part in frame.groupby(labels, observed=True, sort=True):
        tally = part["flip"].value_counts()
        if len(part) < MIN_ITEMS:
            continue
        broken, fixed = int(tally.get("broken", 0)), int(tally.get("fixed", 0))
        right = int(tally.get("same_right", 0))
        table = stats.Table2x2(right, broken, fixed, len(part) - right - broken - fixed)
        found = stats.paired_interval(table)
        colour, symbol = plots.GREY, "circle"
        if found.excludes_zero:
            down = found.value < 0
            colour = plots.RED if down else plots.GREEN
            symbol = "triangle-left" if down else "triangle-right"
        rows.append(
            {
                "label": str(label), "value": found.value, "low": found.low, "high": found.high,
                "colour": colour, "symbol": symbol, "n": len(part), "broken": broken, "fixed": fixed,
                "text": f"{fmt.points(found.value)}  n = {fmt.count(len(part))}",
            }
        )  # fmt: skip
    return pd.DataFrame(rows)
