"""Judgements in words: the one place where a verdict becomes text, for gains as for losses.

Direction words (raises, lowers) and "no difference" are said only of a decided verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bidir_core.analyse.effects import Retention
from bidir_core.analyse.stats import Estimate
from bidir_core.analyse.verdict import Judgement, Verdict, n_to_decide
from bidir_core.common.formatting import count, p_text, points

WORDS: dict[Verdict, str] = {
    "better": "higher",
    "worse": "lower",
    "equivalent": "no difference",
    "undecided": "undecided",
}
# As the JSON files and ``compare --json`` have it, which other people's scripts read.
JSON_WORDS: dict[Verdict, str] = {
    "better": "different",
    "worse": "different",
    "equivalent": "no difference",
    "undecided": "undecided",
}
HOLM = "undecided once the number of tasks is allowed for (Holm)"


def word(judgement: Judgement) -> str:
    """``higher``, ``lower``, ``no difference``, ``undecided`` or ``no interval``."""
    return "no interval" if judgement.estimate is None else WORDS[judgement.verdict]


def phrase(judgement: Judgement) -> str:
    """A table cell's words: the verdict, and what an undecided one is undecided by."""
    estimate = judgement.estimate
    if estimate is None or judgement.decided:
        return word(judgement)
    if judgement.verdict == "equivalent":
        where = "beyond" if estimate.excludes_zero else "within"
        return f"no difference {where} {size(judgement.margin)}"
    if judgement.reason == "exact test":
        least = "" if len(judgement.p_values) == 1 else "up to "
        return f"undecided by the exact McNemar test, p = {least}{p_text(max(judgement.p_values))}"
    if judgement.reason == "several tests":
        return HOLM
    n = n_to_decide(estimate, margin=judgement.margin)
    if n is None:
        return f"undecided, {count(estimate.n)} item{'s are' if estimate.n > 1 else ' is'} too few"
    return f"undecided, needs about n = {count(n)}"


def sentence(who: str, judgement: Judgement, *, tasks: Sequence[str], metric: str = "acc") -> str:
    """One honest sentence, such as "Bidirectional prefill lowers macro accuracy by 4.7 points
    (95 % CI 3.9 to 5.4, n = 2,299, 5 tasks)."

    ValueError for a judgement without an interval.
    """
    estimate = judgement.estimate
    if estimate is None:
        raise ValueError("a sentence needs an interval")
    measure = "macro accuracy" if len(tasks) > 1 else f"accuracy on {tasks[0]}"
    if metric != "acc":
        measure += f" ({metric})"
    base = f"n = {count(estimate.n)}, {len(tasks)} task{'s' if len(tasks) > 1 else ''}"
    if estimate.excludes_zero and judgement.verdict != "undecided":
        verb = "raises" if estimate.value > 0 else "lowers"
        near, far = sorted((abs(estimate.low), abs(estimate.high)))
        change = f"{verb} {measure} by {points(abs(estimate.value))} points"
        interval = f"95 % CI {points(near)} to {points(far)}"
    else:
        change = f"changes {measure} by {points(estimate.value, signed=True)} points"
        interval = interval_text(estimate)
    ending = "" if judgement.decided else f"; {phrase(judgement)}"
    return f"{who} {change} ({interval}, {base}){ending}."


def interval_text(estimate: Estimate) -> str:
    """``95 % CI -6.3 to -3.1``, in points."""
    low, high = (points(end, signed=True) for end in (estimate.low, estimate.high))
    return f"95 % CI {low} to {high}"


def interval_of(estimate: Estimate) -> str:
    """``95 % CI -6.3 to -3.1, n = 2,299``."""
    return f"{interval_text(estimate)}, n = {count(estimate.n)}"


def in_points(judgement: Judgement) -> str:
    """``-4.7 points (95 % CI -6.3 to -3.1, n = 2,299)``."""
    estimate = judgement.estimate
    if estimate is None:
        return "no interval"
    return f"{points(estimate.value, signed=True)} points ({interval_of(estimate)})"


def size(margin: float) -> str:
    """``1 point``, ``1.5 points``."""
    return f"{100 * margin:g} point{'' if margin == 0.01 else 's'}"


def retention_text(retention: Retention, *, short: bool = False) -> str:
    """``48.6 % (95 % CI 34.9 to 63.0 %, n = 2,299)``, or why it is not stated; ``short``: without n
    and the reason, for a table's cell."""
    if retention.value is None:
        return "suppressed" if short else f"suppressed: {retention.why_suppressed}"
    value = f"{100 * retention.value:.1f} %"
    if retention.low is None or retention.high is None:
        return f"{value} (no interval)"
    ends = f"{100 * retention.low:.1f} to {100 * retention.high:.1f} %"
    return f"{value} ({ends})" if short else f"{value} (95 % CI {ends}, n = {count(retention.n)})"


def no_share(share: Mapping[str, Any] | None) -> str:
    """Why a share of the damage is not stated; empty without any."""
    return f"; no share is stated: {share['why_suppressed']}" if share else ""
