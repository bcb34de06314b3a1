"""What a sweep found: each point against its own causal run, and the verdict on the best one.

All differences are paired. The *damage* is causal minus bidirectional; a point *removes* the share
(point - bidirectional) / (causal - bidirectional) of it, with a paired bootstrap interval (items
resampled within tasks, seeded); no share is stated where the damage itself is not separable from 0.

Which point is the best, and what that verdict is worth, is in ``verdicts``. For any point that a
reader picks, numbers are exploratory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bidir_core import stats
from bidir_core.lab.points import Condition, Point
from bidir_core.lab.verdicts import best, best_of_dials
from bidir_core.pairing import METRICS, pair
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL
from bidir_core.retention import Retention, above_floor_retention
from bidir_core.sampling import fold_of
from bidir_core.store import Run

Bools = np.ndarray  # [n_items]


@dataclass(frozen=True)
class Outcomes:
    """Who was right, in one prompt condition and measure, over the causal run's items.

    ``right`` and ``known`` (scored by both) are by slug. ``halves``: the fold of each item.
    """

    task: np.ndarray
    halves: np.ndarray
    right: dict[str, Bools]
    known: dict[str, Bools]

    def split(self, slug: str, mask: Bools) -> dict[str, Bools]:
        tasks = dict.fromkeys(self.task.tolist())
        return {task: self.right[slug][mask & (self.task == task)] for task in tasks}

    def mask(self, *slugs: str, half: str | None = None) -> Bools:
        """The items that all of these runs scored, of one half if given."""
        mask = np.logical_and.reduce([self.known[slug] for slug in slugs])
        return mask if half is None else mask & (self.halves == half)

    def accuracy(self, slug: str, half: str | None = None) -> float:
        """Macro accuracy."""
        found = self.split(slug, self.mask(slug, half=half)).values()
        return float(np.mean([one.mean() for one in found])) if all(map(len, found)) else math.nan

    def delta(
        self,
        first: str,
        second: str,
        half: str | None = None,
        *,
        confidence: float = stats.CONFIDENCE,
    ) -> stats.Estimate | None:
        """Macro accuracy of ``second`` minus ``first``, as ``compare`` has it."""
        mask = self.mask(first, second, half=half)
        a, b = self.split(first, mask), self.split(second, mask)
        if not a or not all(map(len, a.values())):
            return None
        deltas = [stats.paired_delta(a[task], b[task], confidence=confidence) for task in a]
        return stats.macro_delta(deltas)

    def removed(
        self,
        causal: str,
        bidirectional: str,
        slug: str,
        half: str | None = None,
        *,
        confidence: float = stats.CONFIDENCE,
    ) -> Retention | None:
        """Which share of the damage a point removes."""
        mask = self.mask(causal, bidirectional, slug, half=half)
        base, floor = self.split(causal, mask), self.split(bidirectional, mask)
        if not base or not all(map(len, base.values())):
            return None
        return above_floor_retention(base, self.split(slug, mask), floor, confidence=confidence)


def outcomes(causal: Run, runs: Mapping[str, Run], metric: str) -> Outcomes:
    """Align finished runs with their causal one. UserError if one does not pair."""
    table = causal.items_table(("task", "doc_hash"))
    n = table.num_rows
    hashes = table.column("doc_hash").to_pylist()
    right, known = {}, {}
    for slug, run in runs.items():
        pairs = pair(causal, run, metric, intersect=True)
        right[slug], known[slug] = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        right[slug][pairs.rows_a], known[slug][pairs.rows_a] = pairs.correct_b, True
    return Outcomes(
        task=table.column("task").to_numpy(zero_copy_only=False),
        halves=np.array([fold_of(one) for one in hashes]),
        right=right,
        known=known,
    )


class Sweep:
    """A sweep's finished points, read once."""

    def __init__(self, run: Run):
        self.run = run
        self.fold = str(run.settings.get("fold") or "all")
        self.usual = Condition(
            str(run.settings.get("bos") or "auto"),
            bool(run.settings.get("chat_template")),
            str(run.settings.get("context") or "full"),
        )
        self.planned = [Point.from_json(value) for value in run.config.get("points") or []]
        folder = run.path / "points"
        every = {point.slug(self.usual): point for point in self.planned}
        self.runs = {slug: Run(folder / slug) for slug in every}
        self.points = {slug: p for slug, p in every.items() if self.runs[slug].state == "done"}
        self._outcomes: dict[tuple[Condition, str], Outcomes] = {}
        self._numbers: dict[tuple[str, str, str | None, float], dict[str, Any]] = {}

    def slug_of(self, regime: str, condition: Condition, patch: str | None = None) -> str | None:
        """The finished point of this kind, or None."""
        slug = Point(regime, condition, patch).slug(self.usual)
        return slug if slug in self.points else None

    def outcomes(self, condition: Condition, metric: str) -> Outcomes | None:
        """None while the condition's causal run is missing."""
        slot = (condition, metric)
        causal = self.slug_of(str(CAUSAL), condition)
        if causal is None:
            return None
        if slot not in self._outcomes:
            mine = {s: self.runs[s] for s, p in self.points.items() if p.condition == condition}
            self._outcomes[slot] = outcomes(self.runs[causal], mine, metric)
        return self._outcomes[slot]

    def numbers(
        self,
        slug: str,
        metric: str,
        half: str | None = None,
        *,
        confidence: float = stats.CONFIDENCE,
    ) -> dict[str, Any]:
        """A point's accuracy, its difference to causal, and the share of damage it removes."""
        slot = (slug, metric, half, confidence)
        if slot not in self._numbers:  # verdicts ask for the same bootstrap again
            self._numbers[slot] = self._compute(slug, metric, half, confidence)
        return self._numbers[slot]

    def _compute(
        self, slug: str, metric: str, half: str | None, confidence: float
    ) -> dict[str, Any]:
        point = self.points[slug]
        found = self.outcomes(point.condition, metric)
        causal = self.slug_of(str(CAUSAL), point.condition)
        plain = self.slug_of(str(BIDIRECTIONAL), point.condition)
        out: dict[str, Any] = {"value": None, "delta": None, "removed": None}
        if found is None or causal is None:
            return out
        out["value"] = _number(found.accuracy(slug, half))
        out["half_width"] = _half_width(found, slug, half)
        if slug != causal:
            delta = found.delta(causal, slug, half, confidence=confidence)
            out["delta"] = delta and {**asdict(delta), "verdict": stats.verdict(delta)}
            if plain is not None and slug != plain:
                share = found.removed(causal, plain, slug, half, confidence=confidence)
                out["removed"] = share and asdict(share)
        return out


def summarise(run: Run) -> dict[str, Any]:
    """The part of a sweep's ``metrics.json`` that its finished points decide."""
    from bidir_core.lab import controls

    sweep = Sweep(run)
    points = [
        {
            **point.to_json(sweep.usual),
            "condition_words": point.condition.words(sweep.usual),
            "n": int((sweep.runs[slug].metrics or {}).get("n_items") or 0),
            "seconds": (sweep.runs[slug].metrics or {}).get("cost", {}).get("seconds"),
            **{metric: sweep.numbers(slug, metric) for metric in METRICS},
        }
        for slug, point in sweep.points.items()
    ]
    return {
        "n_points": len(points),
        "n_planned": len(sweep.planned),
        "n_items": max((point["n"] for point in points), default=0),
        "points": points,
        "best": {metric: best(sweep, metric) for metric in METRICS},
        "best_of_dials": {metric: best_of_dials(sweep, metric) for metric in METRICS},
        "controls": controls.judge(sweep) if run.settings.get("controls") else [],
    }


def _half_width(found: Outcomes, slug: str, half: str | None) -> float | None:
    """Half of the macro accuracy's own 95 % interval (normal, tasks independent)."""
    tasks = list(found.split(slug, found.mask(slug, half=half)).values())
    if not tasks or any(len(one) < 2 for one in tasks):
        return None
    variance = math.fsum(one.mean() * (1 - one.mean()) / (len(one) - 1) for one in tasks)
    return stats.Z_95 * math.sqrt(variance) / len(tasks)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
