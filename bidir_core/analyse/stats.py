"""Paired statistics of two runs over the same items: arrays in, numbers with intervals out.

Everything is paired, because the runs share their items: two unpaired standard errors would
ignore that and be too wide. Accuracies and differences are fractions (0.01 is one point); a
difference is always *second minus first*. Intervals are 95 % unless ``confidence`` says otherwise.

scipy and statsmodels are imported where they are used: they load as slowly as all the rest of the
app together, and most pages and commands begin without them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

ALPHA = 0.05  # of a test, Holm's adjustment included
CONFIDENCE = 0.95
Z_95 = 1.959964  # half of a normal 95 % interval, in standard errors
MARGIN = 0.01
MIN_ITEMS = 20  # an interval of fewer items says nothing anyone should read
BEST_AT = 500  # items at which a look at growing data is narrowest
POWER = 0.8  # of the smallest difference that is called detectable
MIN_COUNT = 5  # fewer right or fewer wrong answers, and a proportion has no normal interval


@dataclass(frozen=True)
class Estimate:
    """A number with its interval. ``n``: the items behind it."""

    value: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Table2x2:
    """How two runs agree on n items: right or wrong in the first, then in the second."""

    both_right: int
    broken: int
    fixed: int
    both_wrong: int

    @property
    def n(self) -> int:
        return self.both_right + self.broken + self.fixed + self.both_wrong

    @property
    def churn(self) -> int:
        """Items whose correctness changed, in either direction."""
        return self.broken + self.fixed

    @property
    def delta(self) -> float:
        return (self.fixed - self.broken) / self.n


def table_2x2(first: np.ndarray, second: np.ndarray) -> Table2x2:
    """Count the pairs of two bool arrays of shape ``[n_items]``."""
    a, b = pair_of_bools(first, second)
    both, only_a, only_b = int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum())
    return Table2x2(both, only_a, only_b, len(a) - both - only_a - only_b)


def proportion(right: int, n: int, *, confidence: float = CONFIDENCE) -> Estimate:
    """A share of ``n`` items with Wilson's score interval (1927), which stays between 0 and 1 and
    keeps a width where none or all of few items are right. ValueError without any item."""
    from statsmodels.stats.proportion import proportion_confint

    if n <= 0:
        raise ValueError("no items to take a share of")
    low, high = proportion_confint(right, n, alpha=1 - confidence, method="wilson")
    share = right / n
    return Estimate(share, min(low, share), max(high, share), n)  # rounding may leave it out


def accuracy(share: float, n: int) -> Estimate:
    """A task's accuracy with its own 95 % interval, from the printed share and n alone.

    Normal with lm-eval's sample variance p (1 - p) / (n - 1); Wilson's where fewer than MIN_COUNT
    answers are right or wrong, since the normal one loses its width there.
    """
    if n < 2 or min(share, 1 - share) * n < MIN_COUNT:
        return proportion(round(share * n), n)
    half = Z_95 * math.sqrt(share * (1 - share) / (n - 1))
    return Estimate(share, share - half, share + half, n)


def unpaired_delta(first: Estimate, second: Estimate) -> Estimate:
    """``second`` minus ``first`` of independent proportions: Newcombe's hybrid score interval where
    both are Wilson's (1998, Statistics in Medicine 17:873-890), the normal one where both are."""
    value = second.value - first.value
    down = math.hypot(second.value - second.low, first.high - first.value)
    up = math.hypot(second.high - second.value, first.value - first.low)
    return Estimate(value, value - down, value + up, min(first.n, second.n))


def over_seeds(items: Estimate, per_seed: Sequence[float]) -> Estimate:
    """The interval of a mean over seeds from that over its items, widened by the seeds' spread.

    The variance between seeds, over their number, is added. With k seeds it is known from k - 1
    differences only, so the quantile is Student's t with Satterthwaite's degrees of freedom
    (1946, Biometrics Bulletin 2:110-114): total ** 2 / (seeds ** 2 / (k - 1)), items being many.
    By simulation it covers 94 to 95 % where seeds vary as the items' part does; at three times that
    89 % (2 seeds) and 93 % (3), where a normal quantile covers 83 % and 89 %.
    """
    if len(per_seed) < 2:
        return items
    seeds = float(np.var(per_seed, ddof=1)) / len(per_seed)

    def reach(distance: float) -> float:
        return seeds_half_width((distance / Z_95) ** 2, seeds, len(per_seed))

    low, high = reach(items.value - items.low), reach(items.high - items.value)
    return Estimate(items.value, items.value - low, items.value + high, items.n)


def seeds_half_width(items: float, seeds: float, n_seeds: int) -> float:
    """Half the 95 % interval of a mean with these variances from items and from seeds; see
    :func:`over_seeds`."""
    from scipy.stats import t

    total = items + seeds
    if n_seeds < 2 or seeds <= 0:
        return z_score(CONFIDENCE) * math.sqrt(total)
    df = (n_seeds - 1) * (total / seeds) ** 2
    return float(t.ppf(0.5 + CONFIDENCE / 2, df)) * math.sqrt(total)


def paired_delta(
    first: np.ndarray, second: np.ndarray, *, confidence: float = CONFIDENCE
) -> Estimate:
    """Accuracy of ``second`` minus ``first`` over the same items, with Tango's score interval."""
    return paired_interval(table_2x2(first, second), confidence=confidence)


def paired_interval(table: Table2x2, *, confidence: float = CONFIDENCE) -> Estimate:
    """The difference of two paired proportions with Tango's asymptotic score interval.

    Tango (1998), Statistics in Medicine 17:891-908; recommended by Fagerland, Lydersen and Laake
    (2014), Statistics in Medicine 33:2850-2875. It inverts the score test, so at zero it agrees
    with the asymptotic McNemar test, and it does not collapse when there is no discordant pair.
    """
    n, fixed, broken = table.n, table.fixed, table.broken
    if n == 0:
        raise ValueError("no items to compare")
    z = z_score(confidence)
    delta = (fixed - broken) / n

    def score(difference: float) -> float:
        # Broken's probability at its maximum likelihood under this difference.
        a = 2 * n
        b = -fixed - broken + (2 * n - fixed + broken) * difference
        c = -broken * difference * (1 - difference)
        p = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = n * (2 * p + difference * (1 - difference))
        distance = fixed - broken - n * difference
        if variance <= 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / math.sqrt(variance)

    edge = 1 - 1e-12
    low = -1.0 if delta <= -1 else _root(lambda d: score(d) - z, -edge, delta, otherwise=-1.0)
    high = 1.0 if delta >= 1 else _root(lambda d: score(d) + z, delta, edge, otherwise=1.0)
    return Estimate(delta, min(low, delta), max(high, delta), n)


def macro_delta(deltas: Sequence[Estimate]) -> Estimate:
    """The unweighted mean of independent differences, intervals combined by MOVER.

    The distances from estimate to limit add in squares (method of variance estimates recovery,
    Zou and Donner 2008, Statistics in Medicine 27:1693-1702), so for one task this is that task's
    own interval and for many items it is the normal interval with summed variances.
    """
    if not deltas:
        raise ValueError("no tasks to average")
    count = len(deltas)
    value = math.fsum(d.value for d in deltas) / count
    down = math.sqrt(math.fsum((d.value - d.low) ** 2 for d in deltas)) / count
    up = math.sqrt(math.fsum((d.high - d.value) ** 2 for d in deltas)) / count
    return Estimate(value, max(value - down, -1.0), min(value + up, 1.0), sum(d.n for d in deltas))


def anytime(estimate: Estimate) -> Estimate:
    """The interval that holds at every look at growing data at once, from the 95 % one of this look.

    Asymptotic confidence sequence (Waudby-Smith et al. 2024, Annals of Statistics 52:2613-2640),
    narrowest at about :data:`BEST_AT` items: there about 1.5 times as wide as the single look's.
    """
    alpha = 1 - CONFIDENCE
    rho = (-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))) / BEST_AT
    grown = estimate.n * rho + 1
    wider = math.sqrt(2 * grown / (grown - 1) * math.log(math.sqrt(grown) / alpha)) / Z_95
    low = estimate.value - wider * (estimate.value - estimate.low)
    high = estimate.value + wider * (estimate.high - estimate.value)
    return Estimate(estimate.value, max(low, -1.0), min(high, 1.0), estimate.n)


def mcnemar_exact(broken: int, fixed: int) -> float:
    """Two-sided exact McNemar p value (binomial on the discordant pairs); 1 if there is none."""
    from statsmodels.stats.contingency_tables import mcnemar

    if broken + fixed == 0:
        return 1.0
    return float(min(mcnemar([[0, broken], [fixed, 0]], exact=True).pvalue, 1.0))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment over a family of tests (the tasks)."""
    # By hand: statsmodels' multipletests runs a whole garbage collection on every call, which a
    # page with many comparisons feels. A test holds this to it.
    count = len(p_values)
    adjusted, largest = [0.0] * count, 0.0
    for rank, index in enumerate(sorted(range(count), key=p_values.__getitem__)):
        largest = max(largest, min((count - rank) * float(p_values[index]), 1.0))
        adjusted[index] = largest
    return adjusted


def smallest_detectable(n: int, discordance: float) -> float | None:
    """The smallest true difference that a paired test on n items finds with 80 % power.

    ``discordance``: the share of items whose correctness differs. Connor's sample size formula
    (1987, Biometrics 43:207-211) solved for the difference. None if no difference that this
    discordance allows would be found.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    if n <= 0:
        return None
    z_alpha, z_beta = z_score(CONFIDENCE), float(norm.ppf(POWER))

    def surplus(difference: float) -> float:
        spread = math.sqrt(max(discordance - difference * difference, 0.0))
        return math.sqrt(n) * difference - z_alpha * math.sqrt(discordance) - z_beta * spread

    largest = min(discordance, 1.0)
    if largest <= 0 or surplus(largest) < 0:
        return None
    return float(brentq(surplus, 0.0, largest))


def smoothed_discordance(table: Table2x2) -> float:
    """Share of discordant items with one pseudo-item on each side (as Bonett and Price, 2012)."""
    return (table.churn + 2) / (table.n + 2)


def smallest_detectable_macro(tables: Sequence[Table2x2]) -> float | None:
    """As :func:`smallest_detectable` for the unweighted mean over tasks (normal approximation)."""
    from scipy.stats import norm

    if not tables or any(table.n == 0 for table in tables):
        return None
    shares = [smoothed_discordance(table) for table in tables]
    variance = math.fsum(s / table.n for s, table in zip(shares, tables)) / len(tables) ** 2
    detectable = (z_score(CONFIDENCE) + float(norm.ppf(POWER))) * math.sqrt(variance)
    # No difference exceeds the share of items that differ; so few items then find none at all.
    return detectable if detectable <= math.fsum(shares) / len(shares) else None


def pair_of_bools(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"paired arrays must be one row each and alike: {a.shape}, {b.shape}")
    if not len(a):
        raise ValueError("no items to compare")
    return a, b


@cache
def z_score(confidence: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf(0.5 + confidence / 2))


def _root(function, low: float, high: float, *, otherwise: float) -> float:
    """The root between two ends; ``otherwise`` where the function has one sign on both."""
    from scipy.optimize import brentq

    if not low < high or np.sign(function(low)) == np.sign(function(high)):
        return otherwise
    return float(brentq(function, low, high, xtol=1e-12))
