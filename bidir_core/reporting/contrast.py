"""One difference that a report speaks of, and what can be said about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bidir_core import stats
from bidir_core.retention import Retention

Basis = Literal["paired", "unpaired", "none"]
Direction = Literal["lower", "higher", "same", "undecided", "unknown"]
BASES = {
    "paired": "paired item by item",
    "unpaired": "unpaired, from printed accuracies and n",
    "none": "no interval: too little is known of the runs",
}


@dataclass(frozen=True)
class TaskDelta:
    """One task of a contrast. Counts are means over seeds; p values stand one for each seed."""

    task: str
    n: int | None
    acc_a: float
    acc_b: float
    delta: float
    interval: stats.Estimate | None
    broken: float | None = None
    fixed: float | None = None
    changed_wrong: float | None = None
    p_values: tuple[float, ...] = ()
    p_holm: tuple[float, ...] = ()


@dataclass(frozen=True)
class Contrast:
    """``b`` minus ``a``, macro, with what can be said about it.

    ``value`` is from the runs' own macro accuracies where nothing pairs. ``per_seed`` holds one
    value for each pair of ``runs`` (ids, of a and of b). ``basis`` says where the interval comes
    from.
    """

    key: str
    a: str
    b: str
    acc_a: float
    acc_b: float
    value: float
    interval: stats.Estimate | None
    basis: Basis
    tasks: tuple[TaskDelta, ...] = ()
    per_seed: tuple[float, ...] = ()
    ratio: float | None = None
    above_chance: Retention | None = None
    above_floor: Retention | None = None
    detectable: float | None = None
    margin: float = stats.MARGIN
    leaky: bool = False
    notes: tuple[str, ...] = field(default=())
    runs: tuple[tuple[str, str], ...] = ()

    @property
    def n(self) -> int | None:
        return self.interval.n if self.interval is not None else None

    @property
    def n_seeds(self) -> int:
        return len(self.per_seed)

    @property
    def verdict(self) -> stats.Verdict | None:
        return stats.verdict(self.interval, margin=self.margin) if self.interval else None

    @property
    def direction(self) -> Direction:
        """``same`` only if equivalent within the margin; ``unknown`` without an interval."""
        return direction_of(self.interval, self.margin)


def direction_of(interval: stats.Estimate | None, margin: float) -> Direction:
    """What an interval says about its number, in one word."""
    if interval is None:
        return "unknown"
    verdict = stats.verdict(interval, margin=margin)
    if verdict == "no difference":
        return "same"
    if verdict == "undecided":
        return "undecided"
    return "higher" if interval.value > 0 else "lower"


def mean_retention(found: Sequence[Retention | None]) -> Retention | None:
    """Over seeds: the mean, and an interval that holds every seed's own."""
    known = [one for one in found if one is not None]
    if len(known) != len(found) or not known:
        return None
    if len(known) == 1:
        return known[0]
    hidden = [one for one in known if one.value is None]
    if hidden:
        return hidden[0]
    return Retention(
        value=mean([one.value for one in known]),
        low=min(one.low for one in known if one.low is not None),
        high=max(one.high for one in known if one.high is not None),
        n=known[0].n,
    )


def mean(values: Sequence[Any]) -> float:
    return math.fsum(values) / len(values)
