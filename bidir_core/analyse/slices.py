"""The paired difference within slices of the items: by prefix length, choice length, gold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from bidir_core.analyse import stats
from bidir_core.analyse.verdict import Judgement, judge


@dataclass(frozen=True)
class Slice:
    """The items of one label, pooled over tasks."""

    label: str
    estimate: stats.Estimate
    judgement: Judgement
    broken: int
    fixed: int


def bands(values: pd.Series) -> pd.Series:
    """Labels ``A to B`` that cut integer values into about five equally filled bands."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, 6)).astype(int))
    if len(edges) < 2:
        return pd.Series(f"{edges[0]}", index=values.index)
    lows, highs = edges[:-1], [*(edges[1:-1] - 1), edges[-1]]  # the last band has its end
    names = [f"{low} to {high}" if low < high else f"{low}" for low, high in zip(lows, highs)]
    index = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(names) - 1)
    labels = pd.Categorical.from_codes(index, categories=names, ordered=True)
    return pd.Series(labels, index=values.index)


def slices(flips: pd.Series, labels: pd.Series) -> list[Slice]:
    """One for each label that has at least ``stats.MIN_ITEMS`` items. ``flips``: each item's class,
    as :mod:`bidir_core.analyse.flips` names them."""
    kept = []
    for label, part in flips.groupby(labels, observed=True, sort=True):
        if len(part) < stats.MIN_ITEMS:
            continue
        tally = part.value_counts()
        right, broken, fixed = (
            int(tally.get(name, 0)) for name in ("same_right", "broken", "fixed")
        )
        wrong = len(part) - right - broken - fixed
        estimate = stats.paired_interval(stats.Table2x2(right, broken, fixed, wrong))
        judgement = judge(estimate, p_values=[stats.mcnemar_exact(broken, fixed)])
        kept.append(Slice(str(label), estimate, judgement, broken, fixed))
    return kept
