"""The word for a difference: from its interval, the margin and, of several tasks, Holm."""

from __future__ import annotations

from collections.abc import Iterable

from bidir_core import stats

SIGNIFICANCE = 0.05


def verdict_words(
    interval: stats.Estimate | None, margin: float, p_holm: Iterable[float] = ()
) -> str:
    """``higher``, ``lower``, ``no difference`` (within the margin), ``undecided``, ``no interval``.

    Of several tasks one is called different only if Holm's adjustment leaves it so for every seed.
    """
    if interval is None:
        return "no interval"
    verdict = stats.verdict(interval, margin=margin)
    if verdict == "no difference":
        return verdict
    if verdict == "undecided" or any(p >= SIGNIFICANCE for p in p_holm):
        return "undecided"
    return "higher" if interval.value > 0 else "lower"
