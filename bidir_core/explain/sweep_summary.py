"""What a sweep found: each point against its own causal run, and the verdict on the best one.

All differences are paired. The *damage* is causal minus bidirectional; a point *removes* the share
(point - bidirectional) / (causal - bidirectional) of it, with a paired bootstrap interval (items
resampled within tasks, seeded); no share is stated where the damage itself is not separable from 0.

Which point is the best, and what that verdict is worth, is in ``verdicts``. For any point that a
reader picks, numbers are exploratory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bidir_core.analyse import stats
from bidir_core.analyse.effects import Retention, above_floor_retention
from bidir_core.analyse.pairing import pair, repeats
from bidir_core.analyse.phrases import JSON_WORDS, no_share
from bidir_core.analyse.verdict import judge
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
        return {task: self.right[slug][mask & mine] for task, mine in self._of_task.items()}

    def mask(self, *slugs: str, half: str | None = None) -> Bools:
        """The items that all of these runs scored, of one half if given."""
        mask = np.logical_and.reduce([self.known[slug] for slug in slugs])
        return mask if half is None else mask & (self.halves == half)

    def accuracy(self, slug: str, half: str | None = None) -> float:
        """Macro accuracy."""
        by_task = self.split(slug, self.mask(slug, half=half)).values()
        return (
            float(np.mean([right.mean() for right in by_task]))
            if all(map(len, by_task))
            else math.nan
        )

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
        outcomes = self.outcomes(point.condition, metric)
        causal = self.slug_of(str(CAUSAL), point.condition)
        plain = self.slug_of(str(BIDIRECTIONAL), point.condition)
        out: dict[str, Any] = {"value": None, "delta": None, "removed": None}
        if outcomes is None or causal is None:
            return out
        out["value"] = _number(outcomes.accuracy(slug, half))
        out["half_width"] = _half_width(outcomes, slug, half)
        if slug != causal:
            delta = outcomes.delta(causal, slug, half, confidence=confidence)
            out["delta"] = delta and {**asdict(delta), "verdict": JSON_WORDS[judge(delta).verdict]}
            if plain is not None and slug != plain:
                share = outcomes.removed(causal, plain, slug, half, confidence=confidence)
                out["removed"] = share and asdict(share)
        return out


def _half_width(outcomes: Outcomes, slug: str, half: str | None) -> float | None:
    """Half of the macro accuracy's own 95 % interval."""
    tasks = list(outcomes.split(slug, outcomes.mask(slug, half=half)).values())
    if not tasks or not all(map(len, tasks)):
        return None
    level = stats.macro_delta([stats.accuracy(float(one.mean()), len(one)) for one in tasks])
    return (level.high - level.low) / 2


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


# The best point of a sweep, and of each dial: chosen on one half of the items, judged on the other.


def candidates(sweep: Sweep) -> dict[str, list[str]]:
    """The swept points by the dials they turn, e.g. ``sink`` or ``sink, lambda``."""
    by_dials: dict[str, list[str]] = {}
    for slug, point in sweep.points.items():
        own = point.condition == sweep.usual and point.patch is None and point.part == "sweep"
        dials = re.findall(r"([a-z]+)=", point.regime)
        if own and dials:
            by_dials.setdefault(", ".join(dials), []).append(slug)
    return by_dials


def best(sweep: Sweep, metric: str, among: Sequence[str] | None = None) -> dict[str, Any] | None:
    """The point with the highest accuracy on ``explore`` and what ``confirm`` says of it."""
    mine = among or [slug for slugs in candidates(sweep).values() for slug in slugs]
    outcomes = sweep.outcomes(sweep.usual, metric)
    if outcomes is None or not mine:
        return None
    chosen_on, judged_on = halves(sweep, outcomes)
    slug = choose(outcomes, mine, chosen_on)
    if slug is None:
        return None
    numbers = sweep.numbers(slug, metric, judged_on)
    halved = judged_on is not None
    return {
        "slug": slug,
        "regime": sweep.points[slug].regime,
        "n_candidates": len(mine),
        "exploratory": not halved,
        "chosen_on": sweep.numbers(slug, metric, chosen_on),
        "confirm" if halved else "same_items": numbers,
        "sentence": best_sentence(sweep.points[slug].regime, numbers, len(mine), halved),
    }


def best_of_dials(sweep: Sweep, metric: str) -> dict[str, dict[str, Any]]:
    """The best point of each kind of point, where there are several kinds, judged as a family.

    Beside what :func:`best` says of each: ``simultaneous``, its numbers with intervals that hold
    for all of the family together, and ``family``: how many it has, each interval's confidence, and
    the p value of removing nothing, by itself and after Holm's adjustment.
    """
    kinds = candidates(sweep)
    if len(kinds) < 2:
        return {}
    chosen = {kind: best(sweep, metric, slugs) for kind, slugs in kinds.items()}
    known = {kind: choice for kind, choice in chosen.items() if choice is not None}
    outcomes = sweep.outcomes(sweep.usual, metric)
    plain = sweep.slug_of(str(BIDIRECTIONAL), sweep.usual)
    if not known or outcomes is None:
        return {}
    _, half = halves(sweep, outcomes)
    confidence = 1 - stats.ALPHA / len(known)
    p_values = (
        p_removes_nothing(outcomes, plain, [choice["slug"] for choice in known.values()], half)
        if plain is not None
        else [None] * len(known)
    )
    adjusted = stats.holm([1.0 if p is None else p for p in p_values])
    for choice, p, p_holm in zip(known.values(), p_values, adjusted, strict=True):
        choice["family"] = {
            "n": len(known),
            "confidence": confidence,
            "p": p,
            "p_holm": None if p is None else p_holm,
        }
        choice["simultaneous"] = sweep.numbers(choice["slug"], metric, half, confidence=confidence)
        choice["sentence"] = best_sentence(
            choice["regime"],
            choice["simultaneous"],
            choice["n_candidates"],
            half is not None,
            choice["family"],
        )
    return known


def halves(sweep: Sweep, outcomes: Outcomes) -> tuple[str | None, str | None]:
    """The folds to choose and to judge on; None, all items, where they cannot be kept apart."""
    both = sweep.fold == "all" and all(
        len(set(outcomes.task[outcomes.halves == half])) == len(set(outcomes.task))
        for half in ("explore", "confirm")
    )
    return ("explore", "confirm") if both else (None, None)


def choose(outcomes: Outcomes, slugs: Sequence[str], half: str | None) -> str | None:
    """The point with the highest accuracy on these items; of equal ones the first."""
    scores = [outcomes.accuracy(slug, half) for slug in slugs]
    return None if all(map(math.isnan, scores)) else slugs[int(np.nanargmax(scores))]


def p_removes_nothing(
    outcomes: Outcomes, plain: str, slugs: Sequence[str], half: str | None
) -> list[float | None]:
    """For each point, the p value of scoring as bidirectional (``plain``) does.

    Two-sided, by inverting the interval of the macro difference: it is below alpha exactly where
    the interval of confidence 1 - alpha leaves out 0. None where a task has no items.
    """
    values = []
    for slug in slugs:
        mask = outcomes.mask(plain, slug, half=half)
        a, b = outcomes.split(plain, mask), outcomes.split(slug, mask)
        known = bool(a) and all(map(len, a.values()))
        values.append(p_of_no_difference(list(a.values()), list(b.values())) if known else None)
    return values


def p_of_no_difference(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> float:
    """Two-sided p value of the macro difference of two runs, per task bools of the same items."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    tables = [stats.table_2x2(a, b) for a, b in zip(first, second, strict=True)]

    def beyond(z: float) -> float:
        """How far inside the interval of ``z`` standard errors 0 lies; negative where outside."""
        confidence = 1 - 2 * float(norm.sf(z))
        delta = stats.macro_delta([stats.paired_interval(t, confidence=confidence) for t in tables])
        return -delta.low if delta.value > 0 else delta.high

    least = 1e-6
    if beyond(least) >= 0:
        return 1.0  # no difference at all, but for rounding
    farthest = next((z for z in (4.0, 7.0) if beyond(z) >= 0), None)
    if farthest is None:
        return 2 * float(norm.sf(7.0))  # p values below 3e-12 are not told apart
    return 2 * float(norm.sf(brentq(beyond, least, farthest, xtol=1e-3)))


# --- in words ----------------------------------------------------------------------------------


def best_sentence(
    regime: str,
    numbers: Mapping[str, Any],
    n_candidates: int,
    halved: bool,
    family: Mapping[str, Any] | None = None,
) -> str:
    """The verdict on the best point, and on which items and how many questions it rests."""
    if halved:
        basis = (
            f"Chosen as the best of {n_candidates} on the explore half, judged on the confirm half"
        )
        if n_candidates == 1:
            basis = "Judged on the confirm half"
    else:
        basis = f"Exploratory: the best of {n_candidates} on these same items"
    if family is not None:
        basis += f"; the interval holds for all {family['n']} dials together"
        if family["p_holm"] is not None:
            basis += (
                f", p of removing nothing {_equals(family['p_holm'])} after Holm over the dials"
            )
    return f"{removed_sentence(regime, numbers, family)}. {basis}."


def removed_sentence(
    name: str, numbers: Mapping[str, Any], family: Mapping[str, Any] | None = None
) -> str:
    """``sink=1 removes 103 % of the damage (95 % CI 71 to 140 %, n = 1,150)``.

    In a ``family`` of several questions the intervals are simultaneous and Holm's adjusted p value
    decides whether anything is removed at all.
    """
    share, delta = numbers.get("removed"), numbers.get("delta")
    short = name.removeprefix("bidirectional:")
    interval = "95 % CI" if family is None else "simultaneous 95 % CI"
    if share and share["value"] is not None:
        low, high, n = share["low"], share["high"], formatting.count(share["n"])
        p_holm = None if family is None else family["p_holm"]
        return (
            f"{short} removes {percent(share['value'])} % of the damage ({interval} "
            f"{percent(low)} to {percent(high)} %, n = {n}){_meaning(low, high, p_holm)}"
        )
    if delta is None:
        return f"{short}: no paired difference yet"
    text = (
        f"{short} differs from causal by {formatting.points(delta['value'], signed=True)} points "
        f"({interval} {formatting.points(delta['low'], signed=True)} to "
        f"{formatting.points(delta['high'], signed=True)}, n = {formatting.count(delta['n'])})"
    )
    return text + no_share(share)


def _meaning(low: float, high: float, p_holm: float | None = None) -> str:
    """What the interval leaves open; the adjusted p value, if any, has the stricter word."""
    if low <= 0 <= high or (p_holm is not None and p_holm >= stats.ALPHA):
        return "; not separable from removing nothing"
    if high < 0:
        return "; it adds damage"
    return "; part of it stays" if high < 1 else ""


def percent(share: float) -> str:
    return f"{100 * share:.0f}".replace("-0", "0") if abs(share) < 0.005 else f"{100 * share:.0f}"


def _equals(p: float) -> str:
    text = formatting.p_text(p)
    return text.replace("<", "< ") if text.startswith("<") else f"= {text}"
