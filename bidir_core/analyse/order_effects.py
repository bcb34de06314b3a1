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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd

from bidir_core.analyse.pairing import mismatches, repeats
from bidir_core.analyse.stats import CONFIDENCE, Estimate, paired_delta, proportion, z_score
from bidir_core.analyse.study import NAMES, arm_of
from bidir_core.common import formatting
from bidir_core.common.errors import UserError
from bidir_core.data.items import family_of, has_orders
from bidir_core.runs.run import OUTCOME_COLUMNS, Run, choice_probabilities, outcomes, peak_of

_COLUMNS = ("task", "pair_id", "doc_hash", "gold", "ll", "error", *OUTCOME_COLUMNS)


@dataclass(frozen=True)
class OrderAnswers:
    """One family's answers in both orders, over the documents that both could score; arrays of shape
    `[n_pairs]`, sorted by `pair_id`."""

    family: str
    pair_id: np.ndarray
    doc_hash: np.ndarray  # of the item with the passage first
    first: np.ndarray  # bool: right with the passage first
    last: np.ndarray  # bool: right with the passage last
    first_prob: np.ndarray  # the right choice's share of the probability over the choices
    last_prob: np.ndarray

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
    first_prob: float | None  # None for a run that keeps only its answers
    last_prob: float | None


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


def order_answers(run: Run, metric: str = "acc") -> dict[str, OrderAnswers]:
    """Family -> its answers in both orders; families of which only one is there are left out.

    Raises UserError where a document stands twice, and where its two orders disagree about the
    right choice.
    """
    known = (run.metrics or {}).get("tasks")
    if known and not has_orders(known):
        return {}  # without reading what may be all items of another study
    answers = _answers_of(run, metric)
    twice = answers[answers.duplicated(["task", "pair_id"])]
    if len(twice):
        raise UserError(
            f"document {twice['pair_id'].iloc[0]!r} stands twice in {twice['task'].iloc[0]}"
        )
    by_task = dict(iter(answers.groupby("task", sort=False)))
    by_family = {}
    for family in dict.fromkeys(map(family_of, by_task)):
        first, last = by_task.get(f"{family}_first"), by_task.get(f"{family}_last")
        if first is not None and last is not None:
            by_family[family] = _paired(family, first, last)
    return by_family


def _answers_of(run: Run, metric: str) -> pd.DataFrame:
    """A line for each item of an order task; ``probability``: of the right choice."""
    table = run.items_table(_COLUMNS)
    frame = table.select(["task", "pair_id", "doc_hash", "gold"]).to_pandas()
    frame["right"], _ = outcomes(table, metric)
    frame["probability"] = choice_probabilities(table.column("ll"), frame["gold"].to_numpy())
    frame["scored"] = table.column("error").is_null().to_numpy()
    ordered = [task for task in frame["task"].unique() if task != family_of(task)]
    return frame[frame["pair_id"].notna() & frame["task"].isin(ordered)]


def _paired(family: str, first: pd.DataFrame, last: pd.DataFrame) -> OrderAnswers:
    ids, last_ids = (part["pair_id"].to_numpy(dtype=str) for part in (first, last))
    pair_id, rows, last_rows = np.intersect1d(
        ids, last_ids, assume_unique=True, return_indices=True
    )
    first, last = first.iloc[rows], last.iloc[last_rows]
    disagreeing = first["gold"].to_numpy() != last["gold"].to_numpy()
    if disagreeing.any():
        document = str(pair_id[disagreeing][0])
        raise UserError(f"the two orders of {family} have other right choices for {document!r}")
    kept = first["scored"].to_numpy() & last["scored"].to_numpy()
    return OrderAnswers(
        family,
        pair_id=pair_id[kept],
        doc_hash=first["doc_hash"].to_numpy(dtype=str)[kept],
        first=first["right"].to_numpy()[kept],
        last=last["right"].to_numpy()[kept],
        first_prob=first["probability"].to_numpy()[kept],
        last_prob=last["probability"].to_numpy()[kept],
    )


def order_effect(answers: OrderAnswers) -> OrderEffect:
    """Accuracy by order and the paired order gap. ValueError without any pair."""
    n = answers.n
    return OrderEffect(
        family=answers.family,
        n=n,
        first=proportion(int(answers.first.sum()), n),
        last=proportion(int(answers.last.sum()), n),
        gap=paired_delta(answers.last, answers.first),
        first_prob=_mean(answers.first_prob),
        last_prob=_mean(answers.last_prob),
    )


def _mean(values: np.ndarray) -> float | None:
    mean = float(values.mean())
    return None if math.isnan(mean) else mean


def gap_recovered(causal: OrderAnswers, candidate: OrderAnswers) -> GapRecovered:
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
    gap = paired_delta(base.last, base.first)
    won = other.last.astype(float) - base.last
    lost = base.first.astype(float) - base.last
    share, why = ratio_of_means(won, lost)
    if gap.low <= 0:
        share, limits = None, f"({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"
        why = f"the order gap is not shown to be above 0: {100 * gap.value:+.1f} points {limits}"
    return GapRecovered(
        family=base.family,
        n=len(rows),
        gap=gap,
        first_change=paired_delta(base.first, other.first),
        last_change=paired_delta(base.last, other.last),
        share=share,
        why_not_stated=why,
    )


def ratio_of_means(
    numerator: np.ndarray, denominator: np.ndarray
) -> tuple[Estimate | None, str | None]:
    """mean(numerator) / mean(denominator) of paired values `[n]`, with Fieller's interval.

    The interval is every ratio r for which the mean of `numerator - r * denominator` is not shown
    to differ from 0. None, and why, where that is no bounded interval or has no width.
    """
    n = len(numerator)
    if n < 2:
        return None, "one document gives no interval"
    top, bottom = float(np.mean(numerator)), float(np.mean(denominator))
    spread = np.cov(numerator, denominator) / n * z_score(CONFIDENCE) ** 2
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


# Several regimes, or a repeated prompt, beside causal: what each answers and what it costs.


@dataclass(frozen=True)
class OrderArm:
    """How one run answers an order family, beside the causal baseline.

    ``recovered`` is None for the baseline itself. ``prompt_tokens``: the mean over the documents and
    both orders of what is prefilled for a document. ``constant_guess``: what always answering the
    same position would score. ``seconds`` and ``peak_bytes`` are of the whole
    run, with all its tasks; None where it did not record them.
    """

    run: str
    words: str
    trained: bool
    effect: OrderEffect
    recovered: GapRecovered | None
    prompt_tokens: float
    constant_guess: float | None
    seconds: float | None
    peak_bytes: int | None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> OrderArm:
        """Read what was stored of an arm as a dictionary."""

        settings = {field.name: value[field.name] for field in fields(cls)}
        settings["effect"] = _stored(OrderEffect, value["effect"])
        settings["recovered"] = value["recovered"] and _stored(GapRecovered, value["recovered"])
        return cls(**settings)


def _stored(kind: Any, value: Mapping[str, Any]) -> Any:
    """A dataclass from its own fields alone: later versions may add some."""
    known = {field.name: value.get(field.name) for field in fields(kind)}
    return kind(**{k: _interval_of(v) if isinstance(v, dict) else v for k, v in known.items()})


def _interval_of(v: Mapping[str, Any]) -> Estimate:
    return Estimate(v["value"], v["low"], v["high"], v.get("n") or 0)


def order_arms(
    baseline: Run, candidates: Sequence[Run], *, metric: str = "acc"
) -> dict[str, list[OrderArm]]:
    """Family -> the baseline's arm, then those of the candidates that hold both of its orders.

    UserError where a candidate's prompts were made otherwise than by repeating the baseline's.
    """
    arms: dict[str, list[OrderArm]] = {}
    causal: dict[str, OrderAnswers] = {}
    for run in (baseline, *candidates):
        if different := mismatches(baseline, run):
            raise UserError(f"'{baseline.id}' and '{run.id}' do not pair: {different[0].sentence}")
        lengths = _prompt_tokens(run)
        for family, answers in order_answers(run, metric).items():
            if run is baseline:
                causal[family] = answers
            elif family not in causal:
                continue
            cost = (run.metrics or {}).get("cost") or {}
            arm = OrderArm(
                run=run.id,
                words=arm_words(run),
                trained=bool(run.settings.get("checkpoint")),
                effect=_with_probabilities(order_effect(answers), run),
                recovered=None if run is baseline else gap_recovered(causal[family], answers),
                prompt_tokens=lengths[family],
                constant_guess=constant_guess(run, family),
                seconds=cost.get("seconds"),
                peak_bytes=peak_of(cost),
            )
            arms.setdefault(family, []).append(arm)
    return arms


def constant_guess(run: Run, family: str) -> float | None:
    """What always answering the same position would score with the passage last.

    As recorded; counted on the items of a run that does not record it.
    """
    positions = (run.config.get("answer_positions") or {}).get(f"{family}_last") or {}
    if "best_constant_guess" in positions or not run.has_items:
        return positions.get("best_constant_guess")
    table = run.items_table(("task", "gold")).to_pandas()
    gold = table["gold"][table["task"] == f"{family}_last"]
    return float(gold.value_counts(normalize=True).max()) if len(gold) else None


def _with_probabilities(effect: OrderEffect, run: Run) -> OrderEffect:
    """The effect; of a run that keeps only its answers, with the probabilities of its metrics."""
    if effect.first_prob is not None:
        return effect
    tasks = (run.metrics or {}).get("tasks") or {}
    first, last = (
        (tasks.get(f"{effect.family}_{order}") or {}).get("gold_prob")
        for order in ("first", "last")
    )
    return replace(effect, first_prob=first, last_prob=last)


def arm_words(run: Run) -> str:
    """What a run is among others of its model: regime, repeated prompt, what was trained."""
    parts = [run.regime]
    if (times := repeats(run.settings)) != 1:
        parts.append(f"prompt {times} times")
    if run.settings.get("checkpoint"):
        arm, seed = arm_of(run)
        trained = NAMES.get(arm.code, arm.code)
        dials = (arm.regime or "").partition(":")[2]  # of the mask that it was trained under
        parts.append(" ".join(filter(None, (trained, dials, f"seed {seed}" if seed else ""))))
    return ", ".join(parts)


def _prompt_tokens(run: Run) -> dict[str, float]:
    """Family -> the mean number of prompt tokens of a document in one order."""
    frame = run.items_table(("task", "n_prefix_tokens")).to_pandas().dropna()
    frame = frame[frame["n_prefix_tokens"].str.len() > 0]
    return frame["n_prefix_tokens"].str[0].groupby(frame["task"].map(family_of)).mean().to_dict()


def arm_row(arm: OrderArm) -> list[str]:
    """An arm's numbers as the cells of :data:`ARM_HEADER`; accuracies in percent, gaps in points."""
    effect, recovered = arm.effect, arm.recovered
    share = "-" if recovered is None else "not stated"
    if recovered is not None and recovered.share is not None:
        share = _interval(recovered.share, 0) + " %"
    return [
        arm.words,
        formatting.count(effect.n),
        formatting.points(effect.first.value),
        formatting.points(effect.last.value),
        _interval(effect.gap),
        "-" if recovered is None else _interval(recovered.first_change),
        "-" if recovered is None else _interval(recovered.last_change),
        share,
        " / ".join(
            "-" if p is None else f"{100 * p:.1f}" for p in (effect.first_prob, effect.last_prob)
        ),
        f"{arm.prompt_tokens:.0f}",
        "-" if arm.seconds is None else f"{arm.seconds:,.0f}",
        "-" if arm.peak_bytes is None else f"{arm.peak_bytes / 1e9:.1f}",
    ]


ARM_HEADER = (
    "arm",
    "n",
    "passage first, %",
    "passage last, %",
    "order gap, points",
    "first, to causal",
    "last, to causal",
    "gap recovered",
    "gold probability, %",
    "prompt tokens",
    "seconds",
    "GB",
)


def order_text(arms: Mapping[str, Sequence[OrderArm]]) -> list[str]:
    """Each family's arms as lines for a terminal."""
    lines: list[str] = []
    for family, rows in arms.items():
        lines += [f"prompt order, {family_words(family)} (95 % intervals, paired by document):"]
        lines += formatting.table(ARM_HEADER, [arm_row(arm) for arm in rows]).splitlines()
        lines += [order_sentence(rows), ""]
    return lines


def _interval(estimate: Estimate, digits: int = 1) -> str:
    percents = (100 * percent for percent in (estimate.value, estimate.low, estimate.high))
    value, low, high = (f"{percent:+.{digits}f}" for percent in percents)
    return f"{value} ({low} to {high})"


def family_words(family: str) -> str:
    """An order family's name for people: the stem of a user's own files."""
    return PurePath(family).stem or family


def order_sentence(arms: Sequence[OrderArm]) -> str:
    """What one family's arms say, in a sentence or two, whichever way it went."""
    first, guess = arms[0].effect, arms[0].constant_guess
    if guess is not None and max(first.first.low, first.last.low) <= guess:
        return (
            f"{arms[0].words.capitalize()} is not shown to beat one constant answer here "
            f"({100 * guess:.1f} %) in either order, so nothing follows about the order. "
            f"{_gap_sentence(arms)}"
        )
    return _gap_sentence(arms)


def _gap_sentence(arms: Sequence[OrderArm]) -> str:
    causal, n = arms[0].effect, formatting.count(arms[0].effect.n)
    gap = causal.gap
    who, ending = arms[0].words, "so there is nothing to recover."
    if gap.high < 0:
        reversed_gap = Estimate(-gap.value, -gap.high, -gap.low, gap.n)
        return (
            f"The order gap is the other way: with the passage first {who} is right "
            f"{formatting.points(reversed_gap.value)} points less often "
            f"({_interval_words(reversed_gap, n)}), {ending}"
        )
    interval = _interval_words(gap, n)
    if gap.low <= 0:
        return (
            f"No order gap is shown: with the passage first {who} is right "
            f"{formatting.points(gap.value, signed=True)} points more often ({interval}), {ending}"
        )
    text = (
        f"With the passage last {who} is right {formatting.points(gap.value)} points less often "
        f"({interval})."
    )
    shares = []
    for arm in arms[1:]:
        if arm.trained:
            continue  # the sentence asks what no training gives
        share = arm.recovered.share if arm.recovered else None
        if share is None:
            shares.append(f"{arm.words} not stated")
            continue
        low, high = (f"{100 * end:.0f}" for end in (share.low, share.high))
        shares.append(f"{arm.words} {100 * share.value:.0f} % ({low} to {high} %)")
    return f"{text} Recovered of that without training: {'; '.join(shares)}." if shares else text


def _interval_words(estimate: Estimate, n: str) -> str:
    low, high = formatting.points(estimate.low), formatting.points(estimate.high)
    return f"95 % CI {low} to {high}, n = {n}"
