"""What a sweep found: each point against its own causal run.

All differences are paired. The *damage* is causal minus bidirectional; a point *removes* the share
(point - bidirectional) / (causal - bidirectional) of it, with a paired bootstrap interval (items
resampled within tasks, seeded); no share is stated where the damage itself is not separable from 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np

from bidir_core.analyse import stats
from bidir_core.analyse.pairing import pair, repeats
from bidir_core.analyse.stats import Retention, above_floor_retention
from bidir_core.analyse.verdict import (
    JSON_WORDS,
    Judgement,
    interval_text,
    judge,
    no_share,
    phrase,
    size,
)
from bidir_core.common import formatting
from bidir_core.common.errors import UserError
from bidir_core.common.formatting import count, points
from bidir_core.data.items import fold_of
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
        # By condition and metric; None while the condition's causal run is missing.
        self.outcomes = cache(self._outcomes)
        # By slug, metric and half: verdicts ask for the same bootstrap again.
        self.numbers = cache(self._numbers)

    def slug_of(self, regime: str, condition: Condition, patch: str | None = None) -> str | None:
        """The finished point of this kind, or None."""
        slug = Point(regime, condition, patch).slug(self.usual)
        return slug if slug in self.points else None

    def _outcomes(self, condition: Condition, metric: str) -> Outcomes | None:
        causal = self.slug_of(str(CAUSAL), condition)
        if causal is None:
            return None
        runs = {s: self.runs[s] for s, p in self.points.items() if p.condition == condition}
        return outcomes(self.runs[causal], runs, metric)

    def _numbers(self, slug: str, metric: str, half: str | None = None) -> dict[str, Any]:
        """A point's accuracy, its difference to causal, and the share of damage it removes."""
        point = self.points[slug]
        outcomes = self.outcomes(point.condition, metric)
        causal = self.slug_of(str(CAUSAL), point.condition)
        plain = self.slug_of(str(BIDIRECTIONAL), point.condition)
        numbers: dict[str, Any] = {"value": None, "delta": None, "removed": None}
        if outcomes is None or causal is None:
            return numbers
        accuracy = outcomes.accuracy(slug, half)
        numbers["value"] = None if math.isnan(accuracy) else accuracy
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


# The same in words.


def removes(numbers: Mapping[str, Any], *, s: str = "s") -> str:
    """``removes 103 % of the damage (95 % CI 71 to 140 %, n = 1,150)``, or what else can be said.

    ``s``: the verb's ending, none in the plural.
    """
    share, delta = numbers["removed"], numbers["delta"]
    if share and share["value"] is not None:
        return f"remove{s} {share_text(share)}"
    if delta:
        return f"lie{s} {points_text(delta)} from causal{no_share(share)}"
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


# From which layer on may the prompt look ahead: a sweep of ``layers=A-`` read as one answer.
#
# The answer is the smallest A that keeps accuracy on the explore half of the items: its difference to
# causal is within the margin, and so is that of every larger A that was swept. What is claimed of it is
# measured on the confirm half, where it has to be shown equivalent, and on all items. Labels decide
# here; :mod:`bidir_core.explain.recommend` predicts the same layer without any.

_OPEN_FROM = re.compile(r"bidirectional:layers=(\d+)-")


@dataclass(frozen=True)
class Opened:
    """``bidirectional:layers=A-`` against causal: by half, and on all items. Shares, not points."""

    first_layer: int
    explore: stats.Estimate
    confirm: stats.Estimate
    whole: stats.Estimate


@dataclass(frozen=True)
class Law:
    """What a sweep says. ``first_layer`` is None where no swept A keeps accuracy on explore.

    ``confirm`` and ``whole`` judge it against causal; ``regained`` against plain bidirectional, on
    the confirm half: what leaving the layers below A causal gives back.
    """

    model: str
    n_layers: int
    curve: tuple[Opened, ...]
    first_layer: int | None = None
    confirm: Judgement | None = None
    whole: Judgement | None = None
    regained: Judgement | None = None


def law_of(run: Run) -> Law:
    """Read a sweep. UserError if it has no causal point or no ``layers=A-``."""
    return law_in(Sweep(run), "acc")


def law_in(sweep: Sweep, metric: str) -> Law:
    """:func:`law_of` of a sweep that is read already, by one measure."""
    run = sweep.run
    outcomes = sweep.outcomes(sweep.usual, metric)
    causal = sweep.slug_of(str(CAUSAL), sweep.usual)
    slugs = {
        int(match[1]): slug
        for slug, point in sweep.points.items()
        if point.condition == sweep.usual
        and point.patch is None
        and (match := _OPEN_FROM.fullmatch(point.regime))
    }
    if plain := sweep.slug_of(str(BIDIRECTIONAL), sweep.usual):
        slugs[0] = plain
    if outcomes is None or causal is None or len(slugs) < 2:
        raise UserError(
            f"run '{run.id}' has no sweep of layers=A- with its causal run; make one with "
            "lab --preset law, or --sweep layers=1-,2-,3-"
        )
    curve = []
    for first_layer, slug in sorted(slugs.items()):
        deltas = [outcomes.delta(causal, slug, half) for half in ("explore", "confirm", None)]
        if any(delta is None for delta in deltas):
            raise UserError(f"run '{run.id}': layers={first_layer}- has no items in one half")
        curve.append(Opened(first_layer, *deltas))  # type: ignore[arg-type]
    law = Law(run.model, int(run.config.get("n_layers") or 0), tuple(curve))
    smallest = smallest_kept(curve, stats.MARGIN)
    if smallest is None:
        return law
    chosen = slugs[smallest.first_layer]
    return replace(
        law,
        first_layer=smallest.first_layer,
        confirm=outcomes.judged(causal, chosen, "confirm"),
        whole=outcomes.judged(causal, chosen),
        regained=outcomes.judged(plain, chosen, "confirm") if plain and plain != chosen else None,
    )


def smallest_kept(curve: list[Opened], margin: float) -> Opened | None:
    """The smallest A from which on every swept one stays within the margin on explore."""
    chosen = None
    for opened in reversed(curve):
        if abs(opened.explore.value) > margin:
            break
        chosen = opened
    return chosen


def hits(law: Law, recommendation: Mapping[str, Any]) -> dict[str, bool | None]:
    """Which of the stored predictions name the layer that labels chose. None: not predicted.

    ``recommendation``: ``metrics.json`` of a ``recommend`` run of the same model.
    """
    predictions = recommendation.get("predictions") or {}
    return {
        name: None if layer is None else layer == law.first_layer
        for name, layer in predictions.items()
    }


def law_summary(sweep: Sweep, metric: str) -> dict[str, Any] | None:
    """What a sweep's ``metrics.json`` says of its law, beside the prediction that it recorded.

    None for a sweep without several ``layers=A-`` or without causal, or with no item in one half.
    """
    try:
        law = law_in(sweep, metric)
    except UserError:
        return None
    if len(law.curve) < 3:
        return None  # plain bidirectional and one A beside it are no sweep of A
    predicted = sweep.run.config.get("predicted")
    return {
        "first_layer": law.first_layer,
        "n_layers": law.n_layers,
        "curve": [asdict(opened) for opened in law.curve],
        "predicted": predicted,
        "hits": hits(law, predicted) if predicted else {},
        "sentence": law_sentence(law, predicted),
    }


def law_sentence(law: Law, predicted: Mapping[str, Any] | None = None) -> str:
    """The law in words, and who had predicted it."""
    if law.first_layer is None:
        text = f"No swept layers=A- keeps accuracy within {size(stats.MARGIN)} on the explore half."
    else:
        assert law.confirm is not None
        assert law.confirm.estimate is not None
        kept = f"the first {law.first_layer} of" if law.first_layer else "none of the"
        regime = f"layers={law.first_layer}-" if law.first_layer else str(BIDIRECTIONAL)
        change = points(law.confirm.estimate.value, signed=True)
        text = (
            f"With {kept} {law.n_layers} layers causal ({regime}), accuracy stays within "
            f"{size(stats.MARGIN)} of causal on the half of the items that chose how many; on the "
            f"other half it differs by {change} points ({interval_text(law.confirm.estimate)}, "
            f"n = {count(law.confirm.estimate.n)}): {phrase(law.confirm)}."
        )
    if predicted:
        predictions = ", ".join(
            f"{name} {'none' if layer is None else layer}"
            for name, layer in predicted["predictions"].items()
        )
        text += f" Unlabelled prompts had predicted, by {predictions}."
    return text
