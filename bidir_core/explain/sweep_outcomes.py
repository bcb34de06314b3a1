"""What a sweep found: each point against its own causal run.

All differences are paired. The *damage* is causal minus bidirectional; a point *removes* the share
(point - bidirectional) / (causal - bidirectional) of it, with a paired bootstrap interval (items
resampled within tasks, seeded); no share is stated where the damage itself is not separable from 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bidir_core.analyse import stats
from bidir_core.analyse.pairing import pair, repeats
from bidir_core.analyse.stats import Retention, above_floor_retention
from bidir_core.analyse.verdict import JSON_WORDS, Judgement, judge, no_share
from bidir_core.common import formatting
from bidir_core.data.sampling import fold_of
from bidir_core.explain.sweep_points import Condition, Point
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL
from bidir_core.runs.run import Run

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

    @cached_property
    def _of_task(self) -> dict[str, Bools]:
        return {task: self.task == task for task in dict.fromkeys(self.task.tolist())}

    def split(self, slug: str, mask: Bools) -> dict[str, Bools]:
        return {task: self.right[slug][mask & of_task] for task, of_task in self._of_task.items()}

    def mask(self, *slugs: str, half: str | None = None) -> Bools:
        """The items that all of these runs scored, of one half if given."""
        mask = np.logical_and.reduce([self.known[slug] for slug in slugs])
        return mask if half is None else mask & (self.halves == half)

    def tables(self, first: str, second: str, half: str | None = None) -> list[stats.Table2x2]:
        """Right and wrong in both runs, by task; none where a task has no item that both scored."""
        mask = self.mask(first, second, half=half)
        pairs = list(zip(self.split(first, mask).values(), self.split(second, mask).values()))
        return [stats.table_2x2(a, b) for a, b in pairs] if all(len(a) for a, _ in pairs) else []

    def accuracy(self, slug: str, half: str | None = None) -> float:
        """Macro accuracy."""
        by_task = self.split(slug, self.mask(slug, half=half)).values()
        if not all(map(len, by_task)):
            return math.nan
        return float(np.mean([right.mean() for right in by_task]))

    def delta(
        self,
        first: str,
        second: str,
        half: str | None = None,
        *,
        confidence: float = stats.CONFIDENCE,
    ) -> stats.Estimate | None:
        """Macro accuracy of ``second`` minus ``first``, as ``compare`` has it."""
        tables = self.tables(first, second, half)
        deltas = [stats.paired_interval(table, confidence=confidence) for table in tables]
        return stats.macro_delta(deltas) if deltas else None

    def judged(self, first: str, second: str, half: str | None = None) -> Judgement | None:
        """What that difference allows to be said, as ``compare`` says it: of one task alone, by its
        exact test too."""
        delta = self.delta(first, second, half)
        if delta is None:
            return None
        tables = self.tables(first, second, half)
        if len(tables) > 1:
            return judge(delta)
        return judge(delta, p_values=[stats.mcnemar_exact(tables[0].broken, tables[0].fixed)])

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
    table = causal.items_table(("task", "doc_hash", "pair_id"))
    n = table.num_rows
    identities = zip(table.column("pair_id").to_pylist(), table.column("doc_hash").to_pylist())
    right, known = {}, {}
    for slug, run in runs.items():
        pairs = pair(causal, run, metric, intersect=True)
        right[slug], known[slug] = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        right[slug][pairs.rows_a], known[slug][pairs.rows_a] = pairs.correct_b, True
    return Outcomes(
        task=table.column("task").to_numpy(zero_copy_only=False),
        halves=np.array([fold_of(pair_id or doc_hash) for pair_id, doc_hash in identities]),
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
            repeats(run.settings),
        )
        self.planned = [Point.from_json(value) for value in run.config.get("points") or []]
        folder = run.path / "points"
        by_slug = {point.slug(self.usual): point for point in self.planned}
        self.runs = {slug: Run(folder / slug) for slug in by_slug}
        self.points = {slug: p for slug, p in by_slug.items() if self.runs[slug].state == "done"}
        self._outcomes: dict[tuple[Condition, str], Outcomes] = {}
        self._numbers: dict[tuple[str, str, str | None], dict[str, Any]] = {}

    def slug_of(self, regime: str, condition: Condition, patch: str | None = None) -> str | None:
        """The finished point of this kind, or None."""
        slug = Point(regime, condition, patch).slug(self.usual)
        return slug if slug in self.points else None

    def outcomes(self, condition: Condition, metric: str) -> Outcomes | None:
        """None while the condition's causal run is missing."""
        key = (condition, metric)
        causal = self.slug_of(str(CAUSAL), condition)
        if causal is None:
            return None
        if key not in self._outcomes:
            runs = {s: self.runs[s] for s, p in self.points.items() if p.condition == condition}
            self._outcomes[key] = outcomes(self.runs[causal], runs, metric)
        return self._outcomes[key]

    def numbers(self, slug: str, metric: str, half: str | None = None) -> dict[str, Any]:
        """A point's accuracy, its difference to causal, and the share of damage it removes."""
        key = (slug, metric, half)
        if key not in self._numbers:  # verdicts ask for the same bootstrap again
            self._numbers[key] = self._compute(slug, metric, half)
        return self._numbers[key]

    def _compute(self, slug: str, metric: str, half: str | None) -> dict[str, Any]:
        point = self.points[slug]
        outcomes = self.outcomes(point.condition, metric)
        causal = self.slug_of(str(CAUSAL), point.condition)
        plain = self.slug_of(str(BIDIRECTIONAL), point.condition)
        numbers: dict[str, Any] = {"value": None, "delta": None, "removed": None}
        if outcomes is None or causal is None:
            return numbers
        numbers["value"] = _number(outcomes.accuracy(slug, half))
        numbers["half_width"] = _half_width(outcomes, slug, half)
        if slug != causal:
            judged = outcomes.judged(causal, slug, half)
            if judged is not None and judged.estimate is not None:
                numbers["delta"] = asdict(judged.estimate) | {
                    "p_value": next(iter(judged.p_values), None),
                    "verdict": JSON_WORDS[judged.verdict],
                }
            if plain is not None and slug != plain:
                share = outcomes.removed(causal, plain, slug, half)
                numbers["removed"] = share and asdict(share)
        return numbers


def _half_width(outcomes: Outcomes, slug: str, half: str | None) -> float | None:
    """Half of the macro accuracy's own 95 % interval."""
    tasks = list(outcomes.split(slug, outcomes.mask(slug, half=half)).values())
    if not tasks or not all(map(len, tasks)):
        return None
    level = stats.macro_delta([stats.accuracy(float(right.mean()), len(right)) for right in tasks])
    return (level.high - level.low) / 2


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


# The same in words.


def removes(numbers: Mapping[str, Any], *, s: str = "s") -> str:
    """``removes 103 % of the damage (95 % CI 71 to 140 %, n = 1,150)``, or what else can be said.

    ``s``: the verb's ending, none in the plural.
    """
    share, delta = numbers["removed"], numbers["delta"]
    if share and share["value"] is not None:
        return f"remove{s} {share_text(share)}"
    if delta:
        return f"differ{s} from causal by {points_text(delta)}{no_share(share)}"
    return f"{'has' if s else 'have'} no causal run to compare with"


def share_text(share: Mapping[str, Any]) -> str:
    value, low, high = (percent(share[end]) for end in ("value", "low", "high"))
    n = formatting.count(share["n"])
    return f"{value} % of the damage (95 % CI {low} to {high} %, n = {n})"


def points_text(delta: Mapping[str, Any]) -> str:
    value, low, high = (
        formatting.points(delta[end], signed=True) for end in ("value", "low", "high")
    )
    return f"{value} points (95 % CI {low} to {high}, n = {formatting.count(delta['n'])})"


def percent(share: float) -> str:
    return f"{100 * share:.0f}".replace("-0", "0") if abs(share) < 0.005 else f"{100 * share:.0f}"
