"""Runs that differ in nothing but their training seed: one row, the mean, and how far they spread.

The numbers are the report's own (:mod:`bidir_core.analyse.contrasts`); here they are cached and
given the app's names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import streamlit as st

from bidir_core.analyse import compare, effects, stats
from bidir_core.analyse import compare as core
from bidir_core.analyse.contrasts import Contrast, contrast
from bidir_core.analyse.effects import Retention
from bidir_core.analyse.study import BASE, CAUSAL, Arm, Study
from bidir_core.common.errors import UserError
from bidir_core.runs.run import Run
from bidir_ui.kit import fmt
from bidir_ui.reading import analysis
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
        return " to ".join(fmt.percent(value).removesuffix(" %") for value in (min(values), max(values)))  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """Macro accuracy of one group minus another's, paired item by item; fractions."""

    acc_a: float
    acc_b: float
    delta: float
    low: float
    high: float
    n: int
    verdict: stats.Verdict
    words: str
    above_chance: Retention | None
    per_seed: tuple[float, ...]


def groups(runs: Iterable[RunInfo]) -> list[Group]:
    """Runs that differ in their training seed only, together; the newest of each seed, one with
    items before one without.

    ``runs`` come newest first, over the same items. The order is that of each group's first run.
    """
    found: dict[object, dict[int, RunInfo]] = {}
    for run in runs:
        mine = found.setdefault((run.stage, run.regime, run.arm), {})
        known = mine.setdefault(run.train_seed, run)
        if run.has_items and not known.has_items:
            mine[run.train_seed] = run
    return [Group(tuple(by[seed] for seed in sorted(by))) for by in found.values()]


def difference(a: Group | None, b: Group | None, metric: str = "acc") -> Difference | None:
    """``b`` minus ``a``, seed by seed where both have several; None if they do not pair."""
    if a is None or b is None:
        return None
    if len(a.runs) == len(b.runs) == 1:
        result = analysis.try_compare(a.some, b.some, metric)
        if result is None:
            return None
        row = result.macro
        return Difference(
            row.acc_a, row.acc_b, row.delta, row.low, row.high, row.n, row.verdict, row.words,
            result.above_chance, (row.delta,),
        )  # fmt: skip
    try:
        found = _contrast(_key(a), _key(b), _stamps(a, b), metric)
    except (UserError, OSError, ValueError, KeyError):
        return None
    if found is None or found.basis != "paired" or found.interval is None:
        return None
    e, verdict = found.interval, stats.verdict(found.interval)
    return Difference(
        found.acc_a, found.acc_b, e.value, e.low, e.high, e.n, verdict,
        compare.row_words(e, verdict), found.above_chance, found.per_seed,
    )  # fmt: skip


def interaction(cells: Sequence[Group | None], metric: str = "acc") -> effects.Contrast | None:
    """(3B - 3C under bidirectional) - (3B - 3C under causal), over the seeds that all four have;
    the groups in that order. None while one is missing or they do not pair."""
    known = [group for group in cells if group is not None]
    if len(known) != 4:
        return None
    shared = sorted(set.intersection(*(set(group.by_seed) for group in known)))
    if not shared:
        return None
    chosen = [Group(tuple(group.by_seed[seed] for seed in shared)) for group in known]
    try:
        return _interaction(tuple(_key(one) for one in chosen), _stamps(*chosen), metric)
    except (UserError, OSError, ValueError, KeyError):
        return None


def each(per_seed: Sequence[float]) -> str:
    """``one seed``, or ``3 seeds: +7.1, +7.9, +7.4``."""
    if len(per_seed) < 2:
        return "one seed"
    return f"{len(per_seed)} seeds: " + ", ".join(fmt.points(value) for value in per_seed)


Key = tuple[tuple[int, str], ...]  # (seed, path) of each run


def _key(group: Group) -> Key:
    return tuple((run.train_seed, run.path) for run in group.runs)


def _stamps(*of: Group) -> tuple[float, ...]:
    return tuple(run.modified for group in of for run in group.runs)


@st.cache_data(max_entries=64, show_spinner=False)
def _contrast(a: Key, b: Key, stamps: tuple[float, ...], metric: str) -> Contrast | None:
    first, second = (Arm(BASE), CAUSAL), (Arm("3B"), "bidirectional")  # names nobody sees
    cells = {
        cell: {seed: Run(path) for seed, path in key} for cell, key in ((first, a), (second, b))
    }
    study = Study("", "bidirectional", cells, {}, None)
    return contrast("", study, first, second, metric=metric)  # type: ignore[arg-type]


@st.cache_data(max_entries=16, show_spinner=False)
def _interaction(
    cells: tuple[Key, ...], stamps: tuple[float, ...], metric: str
) -> effects.Contrast:
    runs = ([Run(path) for _, path in key] for key in cells)
    return core.interaction_of_runs(*runs, metric=metric)
