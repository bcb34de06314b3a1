"""What a sweep's points say to each control: an outcome from intervals alone, and a sentence.

The border is half of the damage, fixed here and not chosen after looking: a point removes *most*
of it if its whole 95 % interval lies above half, *little* if it lies below, and is *undecided*
otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bidir_core import stats, words
from bidir_core.lab.points import SINK
from bidir_core.pairing import pair
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL, parse_regime
from bidir_core.retention import Retention, above_floor_retention
from bidir_core.store import Run

if TYPE_CHECKING:
    from bidir_core.lab.summary import Sweep

Outcome = Literal["supports", "refutes", "partly", "undecided", "open"]
Standing = Literal["most", "little", "undecided"]

STORY = "the damage comes from the first token looking ahead"
# After a control with this outcome the story is ..
OUTCOME_WORDS: Mapping[Outcome, str] = {
    "supports": "not refuted", "refutes": "refuted", "partly": "refuted in part",
    "undecided": "undecided", "open": "for information",
}  # fmt: skip

HALF = 0.5
NO_SHARE = "no share is stated, the damage itself is not separable from 0"

Answer = tuple[Outcome, str]
NOT_RUN: Answer = ("undecided", "")


def standing(share: Mapping[str, Any] | None) -> Standing:
    """Whether a share of the damage is most of it, little of it, or cannot be told."""
    if not share or share["value"] is None:
        return "undecided"
    return "most" if share["low"] > HALF else "little" if share["high"] < HALF else "undecided"


def _removes(
    sweep: Sweep, slug: str, *, they: bool = False
) -> tuple[Mapping[str, Any] | None, str]:
    """The share of the damage that a point removes, and the same in words (``they``: plural)."""
    s = "" if they else "s"
    numbers = sweep.numbers(slug, "acc")
    share, delta = numbers["removed"], numbers["delta"]
    if share and share["value"] is not None:
        return share, f"remove{s} {_share(share['value'], share['low'], share['high'], share['n'])}"
    if delta:
        return share, f"differ{s} from causal by {_points(delta)}; {NO_SHARE}"
    return share, f"ha{'ve' if they else 's'} no causal run to compare with"


def _share(value: float, low: float, high: float, n: int) -> str:
    return (
        f"{100 * value:.0f} % of the damage (95 % CI {100 * low:.0f} to {100 * high:.0f} %, "
        f"n = {words.count(n)})"
    )


def _points(delta: Mapping[str, Any]) -> str:
    ends = [words.points(delta[end], signed=True) for end in ("value", "low", "high")]
    return f"{ends[0]} points (95 % CI {ends[1]} to {ends[2]}, n = {words.count(delta['n'])})"


def _control_with(sweep: Sweep, dial: str) -> tuple[str, Any] | None:
    """The finished control point that turns this dial and no other, and the dial's value.

    A sweep may hold more of the kind: which token is the control's was fixed before any was run.
    """
    middle = sweep.run.config.get("middle_token")
    wanted = 1 if dial == "tail" else middle
    for slug, point in sweep.points.items():
        regime = parse_regime(point.regime)
        value = getattr(regime, dial)
        fixed = point.part == "control" if wanted is None else value == wanted
        alone = str(regime).count("=") == 1 and point.condition == sweep.usual and not point.patch
        if alone and fixed and value not in (None, 0):
            return slug, value
    return None


def necessity(sweep: Sweep) -> Answer:
    """``sink=1``: does keeping the first token causal remove the damage?"""
    slug = sweep.slug_of(str(SINK), sweep.usual)
    if slug is None:
        return NOT_RUN
    share, text = _removes(sweep, slug)
    outcome: Outcome = {"most": "supports", "little": "refutes"}.get(standing(share), "undecided")  # type: ignore[assignment]
    return outcome, f"Keeping the first token causal {text}."


def sufficiency(sweep: Sweep) -> Answer:
    """``rows=0-0``: is the damage there if only the first token looks ahead?"""
    slug = sweep.slug_of("bidirectional:rows=0-0", sweep.usual)
    if slug is None:
        return NOT_RUN
    share, text = _removes(sweep, slug)
    if not share or share["value"] is None:
        return "undecided", f"Only the first token looking ahead {text}."
    there = _share(1 - share["value"], 1 - share["high"], 1 - share["low"], share["n"])
    outcome: Outcome = {"little": "supports", "most": "refutes"}.get(standing(share), "undecided")  # type: ignore[assignment]
    return outcome, f"With only the first token looking ahead, {there} is there."


def one_point(dial: str, subject: str, if_most: Outcome, if_little: Outcome) -> Callable[..., Any]:
    """How a control of one point, whose ``dial`` has a value fixed beforehand, is judged."""

    def ask(sweep: Sweep) -> Answer:
        found = _control_with(sweep, dial)
        if found is None:
            return NOT_RUN
        slug, value = found
        share, text = _removes(sweep, slug)
        outcome = {"most": if_most, "little": if_little}.get(standing(share), "undecided")
        return outcome, f"{subject.format(value)} {text}."  # type: ignore[return-value]

    return ask


def keys_or_values(sweep: Sweep) -> Answer:
    """The first token's causal keys, or values, alone patched in: by which path."""
    said, standings = [], []
    for patch, name in (("keys=0", "keys"), ("values=0", "values")):
        slug = sweep.slug_of(str(BIDIRECTIONAL), sweep.usual, patch)
        if slug is None:
            return NOT_RUN
        share, text = _removes(sweep, slug, they=True)
        standings.append(standing(share))
        said.append(f"the first token's causal {name} alone {text}")
    reading = {
        ("most", "little"): " It is how the others find the token that matters.",
        ("little", "most"): " It is what the others read from it that matters.",
        ("most", "most"): " Either is enough.",
        ("little", "little"): " Neither alone is enough.",
    }.get((standings[0], standings[1]), " Which of the two matters is undecided.")
    finding = f"{said[0]}; {said[1]}."
    return "open", finding[0].upper() + finding[1:] + reading


def prompt_conditions(sweep: Sweep) -> Answer:
    """Whether ``sink=1`` removes the damage with another BOS, with the chat template."""
    conditions = dict.fromkeys(
        p.condition for p in sweep.points.values() if p.condition.context == sweep.usual.context
    )
    said, standings = [], []
    for condition in conditions:
        plain, sink = (sweep.slug_of(str(r), condition) for r in (BIDIRECTIONAL, SINK))
        if plain is None or sink is None:
            continue
        damage = sweep.numbers(plain, "acc")["delta"]
        share, text = _removes(sweep, sink)
        standings.append(standing(share))
        name = condition.words(sweep.usual) or "usual prompt"
        if damage:
            said.append(f"{name}: bidirectional {_points(damage)}, sink=1 {text}")
    if len(said) < 2:
        return NOT_RUN
    if all(one == "most" for one in standings):
        outcome: Outcome = "supports"
    elif "little" in standings:
        outcome = "partly" if "most" in standings else "refutes"
    else:
        outcome = "undecided"
    finding = "; ".join(said)
    return outcome, finding[0].upper() + finding[1:] + "."


def context_floor(sweep: Sweep) -> Answer:
    """Whether causal beats the same model without any context."""
    floor = sweep.slug_of(str(CAUSAL), sweep.usual._replace(context="none"))
    causal = sweep.slug_of(str(CAUSAL), sweep.usual)
    plain = sweep.slug_of(str(BIDIRECTIONAL), sweep.usual)
    if floor is None or causal is None or plain is None:
        return NOT_RUN
    runs = sweep.runs
    margins = {slug: above(runs[floor], runs[slug]) for slug in (causal, plain)}
    kept = _kept(runs[causal], runs[plain], runs[floor])
    outcome: Outcome = "supports" if margins[causal].low > 0 else "undecided"
    if margins[causal].high < 0:
        outcome = "refutes"
    said = ""
    if kept.value is not None and kept.low is not None and kept.high is not None:
        said = (
            f" Bidirectional keeps {100 * kept.value:.0f} % of what the context gives (95 % CI "
            f"{100 * kept.low:.0f} to {100 * kept.high:.0f} %)."
        )
    return outcome, (
        f"Over no context at all, causal gains {_points(vars(margins[causal]))} and bidirectional "
        f"{_points(vars(margins[plain]))}.{said}"
    )


def above(floor: Run, run: Run) -> stats.Estimate:
    """Macro accuracy of ``run`` minus that of ``floor``, whose context is another one or none."""
    pairs = pair(floor, run, "acc", intersect=True, check_context=False)
    a, b = pairs.by_task(pairs.correct_a), pairs.by_task(pairs.correct_b)
    return stats.macro_delta([stats.paired_delta(a[task], b[task]) for task in a])


def _kept(causal: Run, plain: Run, floor: Run) -> Retention:
    pairs = pair(causal, plain, "acc", intersect=True)
    third = pair(causal, floor, "acc", intersect=True, check_context=False)
    score = dict(zip(zip(third.task, third.doc_id), third.correct_b))
    keys = list(zip(pairs.task, pairs.doc_id))
    known = np.array([key in score for key in keys])
    low = np.array([score.get(key, False) for key in keys])
    parts = [
        {task: values[known & (pairs.task == task)] for task in pairs.tasks}
        for values in (pairs.correct_a, pairs.correct_b, low)
    ]
    return above_floor_retention(parts[0], parts[1], parts[2])
