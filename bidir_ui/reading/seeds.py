"""Runs that differ in nothing but their training seed: one row, the mean, and how far they spread.

The numbers are the report's own (:mod:`bidir_core.analyse.contrasts`); here they are cached and
given the app's names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import streamlit as st

from bidir_core.analyse.contrasts import Contrast, contrast_of_runs
from bidir_core.analyse.pairing import Metric
from bidir_core.analyse.study import BASE
from bidir_core.common.errors import UserError
from bidir_core.runs.run import Run
from bidir_ui.kit import fmt
from bidir_ui.reading.data import RunInfo


@dataclass(frozen=True)
class Group:
    """Runs of one arm under one regime, one for each training seed, in the seeds' order."""

    runs: tuple[RunInfo, ...]

    @property
    def some(self) -> RunInfo:
        """A run that stands for what all of them share."""
        return self.runs[0]

    @property
    def by_seed(self) -> dict[int, RunInfo]:
        return {run.train_seed: run for run in self.runs}

    @property
    def with_items(self) -> Group | None:
        """Those of its runs that hold items: what a paired interval can be made of."""
        kept = tuple(run for run in self.runs if run.has_items)
        return Group(kept) if kept else None

    @property
    def items_words(self) -> str:
        """``from seed 0 alone`` where only some seeds hold items; else empty."""
        kept = self.with_items
        if kept is None or len(kept.runs) == len(self.runs):
            return ""
        plural = "seeds" if len(kept.runs) > 1 else "seed"
        return f"from {plural} {', '.join(map(str, kept.by_seed))} alone"

    @property
    def label(self) -> str:
        """``3B full, 3 seeds``; a single run says its seed if that is not 0."""
        if len(self.runs) == 1:
            return self.some.weights
        return f"{self.some.arm_label}, {len(self.runs)} seeds"

    def mean(self, metric: str = "acc") -> float | None:
        """Mean macro accuracy; None if one of the runs has none."""
        values = [run.macro.get(metric) for run in self.runs]
        known = [value for value in values if value is not None]
        return math.fsum(known) / len(known) if len(known) == len(values) else None

    def spread(self, metric: str = "acc") -> str:
        """``47.2 to 48.1`` over the seeds; empty for a single run."""
        values = [value for run in self.runs if (value := run.macro.get(metric)) is not None]
        if len(values) < 2:
            return ""
        return " to ".join(
            fmt.percent(value).removesuffix(" %") for value in (min(values), max(values))
        )


def groups(runs: Iterable[RunInfo]) -> list[Group]:
    """Runs that differ in their training seed only, together; the newest of each seed, one with
    items before one without.

    ``runs`` come newest first, over the same items. The order is that of each group's first run.
    """
    newest: dict[object, dict[int, RunInfo]] = {}
    for run in runs:
        mine = newest.setdefault((run.stage, run.regime, run.arm), {})
        known = mine.setdefault(run.train_seed, run)
        if run.has_items and not known.has_items:
            mine[run.train_seed] = run
    return [Group(tuple(by[seed] for seed in sorted(by))) for by in newest.values()]


def difference(a: Group | None, b: Group | None, metric: Metric = "acc") -> Contrast | None:
    """``b`` minus ``a``, seed by seed where both were trained; None if they do not pair."""
    if a is None or b is None:
        return None
    try:
        contrast = _contrast(
            _key(a), _key(b), tuple(r.modified for r in (*a.runs, *b.runs)), metric
        )
    except (UserError, OSError, ValueError, KeyError):
        return None
    paired = contrast is not None and contrast.basis == "paired" and contrast.interval is not None
    return contrast if paired else None


def each(per_seed: Sequence[float]) -> str:
    """``one seed``, or ``3 seeds: +7.1, +7.9, +7.4``."""
    if len(per_seed) < 2:
        return "one seed"
    return f"{len(per_seed)} seeds: " + ", ".join(fmt.points(value) for value in per_seed)


Key = tuple[bool, tuple[tuple[int, str], ...]]  # not trained; (seed, path) of each run


def _key(group: Group) -> Key:
    arm = group.some.arm
    untrained = arm is None or arm.code == BASE
    return untrained, tuple((run.train_seed, run.path) for run in group.runs)


@st.cache_data(max_entries=64, show_spinner=False)
def _contrast(a: Key, b: Key, stamps: tuple[float, ...], metric: Metric) -> Contrast | None:
    first, second = ({seed: Run(path) for seed, path in runs} for _, runs in (a, b))
    return contrast_of_runs(first, second, untrained=(a[0], b[0]), metric=metric)
