"""What one difference allows us to say: better, worse, equivalent or undecided, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bidir_core.analyse.stats import ALPHA, MARGIN, MIN_ITEMS, Estimate, anytime

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
