"""What the order of a prompt costs, and how much of it another regime wins back.

An order task asks the same document twice: in `<family>_first` the passage stands before the
question, in `<family>_last` after it. Items of the two orders are paired by `pair_id`, and
everything here is over these pairs:

    order gap        accuracy first - accuracy last, under causal
    gap recovered    (accuracy last, candidate - accuracy last, causal) / order gap

The second is 0 where the candidate answers the harder order as causal does, 1 where it answers it
as well as causal answers the easier one. A candidate that is merely worse at the easier order has
a smaller gap of its own and recovers nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bidir_core.analyse.pairing import mismatches
from bidir_core.analyse.stats import CONFIDENCE, Estimate, paired_delta, proportion, z_score
from bidir_core.common.errors import UserError
from bidir_core.data.items import family_of
from bidir_core.runs.metrics import OUTCOME_COLUMNS, choice_probabilities, outcomes
from bidir_core.runs.run import Run

_COLUMNS = ("task", "pair_id", "doc_hash", "gold", "ll", "error", *OUTCOME_COLUMNS)


@dataclass(frozen=True)
class OrderAnswers:
    """One family's answers in both orders; arrays of shape `[n_pairs]`, sorted by `pair_id`.

    `n_left_out` counts documents that one of the orders lacks or could not score.
    """

    family: str
    pair_id: np.ndarray
    doc_hash: np.ndarray  # of the item with the passage first
    first: np.ndarray  # bool: right with the passage first
    last: np.ndarray  # bool: right with the passage last
    first_prob: np.ndarray  # the right choice's share of the probability over the choices
    last_prob: np.ndarray
    n_left_out: int = 0

    @property
    def n(self) -> int:
        return len(self.pair_id)

    def take(self, rows: np.ndarray) -> OrderAnswers:
        arrays = (self.pair_id, self.doc_hash, self.first, self.last)
        probabilities = (self.first_prob, self.last_prob)
        return OrderAnswers(self.family, *(a[rows] for a in (*arrays, *probabilities)))


@dataclass(frozen=True)
class OrderEffect:
    """Accuracy in each order, and the gap between them (first minus last, paired)."""

    family: str
    n: int
    first: Estimate
    last: Estimate
    gap: Estimate
    first_prob: float
    last_prob: float


@dataclass(frozen=True)
class GapRecovered:
    """Which share of causal's order gap a candidate wins back; `share` None means not stated.

    `first_change` and `last_change` are the candidate's accuracy minus causal's in each order.
    """

    family: str
    n: int
    gap: Estimate
    first_change: Estimate
    last_change: Estimate
    share: Estimate | None
    why_not_stated: str | None = None


def order_answers(*runs: Run, metric: str = "acc") -> dict[str, OrderAnswers]:
    """Family -> its answers, from one run with both orders or from two runs with one each.

    Families of which only one order is there are left out. Raises UserError where two runs differ
    in more than their tasks, where a document stands twice, and where its two orders disagree
    about the right choice.
    """
    for other in runs[1:]:
        _require_alike(runs[0], other)
    items: dict[str, dict[str, tuple]] = {}
    for run in runs:
        table = run.items_table(_COLUMNS)
        gold = table.column("gold").to_numpy()
        probability = choice_probabilities(table.column("ll"), gold)
        right, _ = outcomes(table, metric)
        scored = table.column("error").is_null().to_numpy()
        names = (table.column(name).to_pylist() for name in ("task", "pair_id", "doc_hash"))
        for row, (task, pair_id, doc_hash) in enumerate(zip(*names)):
            if pair_id is None or task == family_of(task):
                continue
            mine = items.setdefault(task, {})
            if pair_id in mine:
                raise UserError(f"document {pair_id!r} stands twice in {task}")
            mine[pair_id] = doc_hash, gold[row], right[row], probability[row], scored[row]
    found = {}
    for family in dict.fromkeys(map(family_of, items)):
        first, last = items.get(f"{family}_first"), items.get(f"{family}_last")
        if first and last:
            found[family] = _paired(family, first, last)
    return found


def _paired(family: str, first: Mapping[str, tuple], last: Mapping[str, tuple]) -> OrderAnswers:
    both = sorted(first.keys() & last.keys())
    other = next((p for p in both if first[p][1] != last[p][1]), None)
    if other is not None:
        raise UserError(f"the two orders of {family} have other right choices for {other!r}")
    kept = [p for p in both if first[p][4] and last[p][4]]
    columns = {
        "doc_hash": [first[p][0] for p in kept],
        "first": [first[p][2] for p in kept],
        "last": [last[p][2] for p in kept],
        "first_prob": [first[p][3] for p in kept],
        "last_prob": [last[p][3] for p in kept],
    }
    return OrderAnswers(
        family,
        np.array(kept),
        **{name: np.array(values) for name, values in columns.items()},
        n_left_out=len(first.keys() | last.keys()) - len(kept),
    )


def _require_alike(run: Run, other: Run) -> None:
    if found := mismatches(run, other):
        raise UserError(f"'{run.id}' and '{other.id}' do not pair: {found[0].sentence}")
    for what, a, b in (
        ("regime", run.regime, other.regime),
        ("model", run.config.get("model_fingerprint"), other.config.get("model_fingerprint")),
    ):
        if a != b:
            raise UserError(
                f"'{run.id}' and '{other.id}' hold one order each but differ in their {what}; "
                "give two runs of one model under one regime"
            )


def order_effect(answers: OrderAnswers, *, confidence: float = CONFIDENCE) -> OrderEffect:
    """Accuracy by order and the paired order gap. ValueError without any pair."""
    n = answers.n
    return OrderEffect(
        family=answers.family,
        n=n,
        first=proportion(int(answers.first.sum()), n, confidence=confidence),
        last=proportion(int(answers.last.sum()), n, confidence=confidence),
        gap=paired_delta(answers.last, answers.first, confidence=confidence),
        first_prob=float(answers.first_prob.mean()),
        last_prob=float(answers.last_prob.mean()),
    )


def gap_recovered(
    causal: OrderAnswers, candidate: OrderAnswers, *, confidence: float = CONFIDENCE
) -> GapRecovered:
    """How much of causal's order gap the candidate wins back, over the documents of both.

    The share's interval is Fieller's for a ratio of two paired means (1954, Journal of the Royal
    Statistical Society B 16:175-185), which stays right where the gap is barely there. The share is
    not stated where the gap's interval reaches 0 or the passage first is worse, and where the
    documents give the ratio no spread. Raises UserError where they share no document or hold
    different ones under one `pair_id`.
    """
    _, rows, other_rows = np.intersect1d(
        causal.pair_id, candidate.pair_id, assume_unique=True, return_indices=True
    )
    if not len(rows):
        raise UserError(f"the two regimes share no document of {causal.family}")
    base, other = causal.take(rows), candidate.take(other_rows)
    different = np.flatnonzero(base.doc_hash != other.doc_hash)
    if len(different):
        raise UserError(
            f"{base.family}: {str(base.pair_id[different[0]])!r} is another document in the two regimes"
        )
    gap = paired_delta(base.last, base.first, confidence=confidence)
    won = other.last.astype(float) - base.last
    lost = base.first.astype(float) - base.last
    share, why = None, None
    if gap.low <= 0:
        why = (
            f"the order gap is not shown to be above 0: {100 * gap.value:+.1f} points "
            f"({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"
        )
    else:
        share, why = ratio_of_means(won, lost, confidence=confidence)
    return GapRecovered(
        family=base.family,
        n=len(rows),
        gap=gap,
        first_change=paired_delta(base.first, other.first, confidence=confidence),
        last_change=paired_delta(base.last, other.last, confidence=confidence),
        share=share,
        why_not_stated=why,
    )


def ratio_of_means(
    numerator: np.ndarray, denominator: np.ndarray, *, confidence: float = CONFIDENCE
) -> tuple[Estimate | None, str | None]:
    """mean(numerator) / mean(denominator) of paired values `[n]`, with Fieller's interval.

    The interval is every ratio r for which the mean of `numerator - r * denominator` is not shown
    to differ from 0. None, and why, where that is no bounded interval or has no width.
    """
    n = len(numerator)
    if n < 2:
        return None, "one document gives no interval"
    top, bottom = float(np.mean(numerator)), float(np.mean(denominator))
    spread = np.cov(numerator, denominator) / n * z_score(confidence) ** 2
    # (top - r bottom)^2 <= z^2 var(top - r bottom)   <=>   a r^2 - 2 b r + c <= 0
    a = bottom**2 - float(spread[1, 1])
    b = top * bottom - float(spread[0, 1])
    c = top**2 - float(spread[0, 0])
    if a <= 0:
        return None, "the denominator is not separable from 0, so the ratio has no bounds"
    half = math.sqrt(max(b * b - a * c, 0.0))
    if half < 1e-9 * max(abs(b), a):
        return None, "the documents all agree, so the ratio has no spread to bound it by"
    return Estimate(top / bottom, (b - half) / a, (b + half) / a, n), None
