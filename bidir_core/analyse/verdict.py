"""What one difference allows us to say: better, worse, equivalent or undecided, why, and in words.

Direction words (raises, lowers) and "no difference" are said only of a decided verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bidir_core.analyse.stats import ALPHA, MARGIN, MIN_ITEMS, Estimate, Retention, anytime
from bidir_core.common.formatting import count, p_text, points

Verdict = Literal["better", "worse", "equivalent", "undecided"]
# Why a verdict is undecided.
Reason = Literal["interval", "exact test", "several tests", "no interval"]


@dataclass(frozen=True)
class Judgement:
    """A difference, second minus first, and its verdict at the 95 % level.

    ``p_values``: exact McNemar tests, one for each seed, and ``p_adjusted`` the same after Holm over
    the tasks; empty where there is no single table of right and wrong, as for a mean over tasks.
    ``broken`` and ``fixed``: items, means over seeds.
    """

    verdict: Verdict
    estimate: Estimate | None
    margin: float = MARGIN
    reason: Reason | None = None
    n_seeds: int = 1
    broken: float | None = None
    fixed: float | None = None
    p_values: tuple[float, ...] = ()
    p_adjusted: tuple[float, ...] = ()

    @property
    def value(self) -> float:
        """The difference itself; NaN without an interval."""
        return math.nan if self.estimate is None else self.estimate.value

    @property
    def decided(self) -> bool:
        """There is a difference, and it has a direction."""
        return self.verdict in ("better", "worse")


def judge(
    estimate: Estimate | None,
    *,
    margin: float = MARGIN,
    n_seeds: int = 1,
    broken: float | None = None,
    fixed: float | None = None,
    p_values: Sequence[float] = (),
    p_adjusted: Sequence[float] = (),
) -> Judgement:
    """``equivalent`` if the whole interval lies inside the margin; ``better`` or ``worse`` if it
    excludes 0 and no exact test, adjusted for several, leaves that open; else ``undecided``."""
    verdict: Verdict = "undecided"
    reason: Reason | None = None
    if estimate is None:
        reason = "no interval"
    elif -margin < estimate.low and estimate.high < margin:
        verdict = "equivalent"
    elif not estimate.excludes_zero:
        reason = "interval"
    elif any(p >= ALPHA for p in p_values):
        reason = "exact test"
    elif any(p >= ALPHA for p in p_adjusted):
        reason = "several tests"
    else:
        verdict = "better" if estimate.value > 0 else "worse"
    tests = tuple(p_values), tuple(p_adjusted)
    return Judgement(verdict, estimate, margin, reason, n_seeds, broken, fixed, *tests)


def n_to_decide(estimate: Estimate, *, margin: float = MARGIN) -> int | None:
    """About how many items (same mix of tasks) would settle an undecided verdict.

    If the estimate stood, the half-width, which shrinks with the square root of n, would have to
    fall below its distance to 0 (a difference) or to the margin (equivalent), whichever is nearer to
    reach. Two significant digits. None for fewer than MIN_ITEMS, whose interval does not shrink so.
    """
    if estimate.n < MIN_ITEMS:
        return None
    half = (estimate.high - estimate.low) / 2
    distance = max(abs(estimate.value), margin - abs(estimate.value))
    exact = estimate.n * (half / distance) ** 2
    step = 10 ** max(int(math.log10(max(exact, 1))) - 1, 0)
    return max(math.ceil(exact / step) * step, estimate.n + 1)


def settled(estimate: Estimate) -> bool:
    """Whether a running difference is decided however often one looks at it while it grows."""
    return estimate.n >= 5 * MIN_ITEMS and judge(anytime(estimate)).verdict != "undecided"


def differ(estimates: Sequence[Estimate]) -> bool:
    """Whether several independent estimates cannot be one: the intervals of two do not meet."""
    return len(estimates) > 1 and max(e.low for e in estimates) > min(e.high for e in estimates)


Aim = Literal["at least", "within", "within or better", "above", "none"]
Reached = Literal["yes", "no", "undecided", ""]


def reached(aim: Aim, estimate: Estimate, margin: float) -> Reached:
    """Whether a difference aimed at is reached: ``yes`` and ``no`` only where the whole interval
    says so. ``margin`` is a fraction; empty without an aim."""
    low, high = estimate.low, estimate.high
    met, missed = {
        "at least": (low >= 0, high < 0),
        "above": (low > 0, high < 0),
        "within": (-margin < low and high < margin, low >= margin or high <= -margin),
        "within or better": (low > -margin, high <= -margin),
        "none": (False, False),
    }[aim]
    if aim == "none":
        return ""
    return "yes" if met else "no" if missed else "undecided"


# In words: the one place where a verdict becomes text, for gains as for losses.

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


def ends_text(low: float, high: float) -> str:
    """``-6.3 to -3.1``, in points."""
    return f"{points(low, signed=True)} to {points(high, signed=True)}"


def interval_text(estimate: Estimate) -> str:
    """``95 % CI -6.3 to -3.1``, in points."""
    return f"95 % CI {ends_text(estimate.low, estimate.high)}"


def estimate_text(estimate: Estimate) -> str:
    """``-4.7 (-6.3 to -3.1)``, in points."""
    return f"{points(estimate.value, signed=True)} ({ends_text(estimate.low, estimate.high)})"


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
