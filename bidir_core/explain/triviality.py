"""Triviality: is bidirectional attention still used under ``sink=1``, or did it stop mattering?

Answered by a sweep's own measurement, or by an ``attend`` summary of the same model and prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from bidir_core.analyse import stats
from bidir_core.common import formatting
from bidir_core.explain.sweep_points import SINK
from bidir_core.regimes import BIDIRECTIONAL

Outcome = Literal["supports", "refutes", "partly", "undecided", "open"]

Answer = tuple[Outcome, str]

TRIVIAL = 0.02  # less attention on future tokens than this would make them irrelevant

# Settings that must agree for two runs to be of one model and one way of making prompts.
SAME = ("model", "revision", "checkpoint", "chat_template", "bos", "repeat_prompt")

Mean = tuple[float, float, float]  # mean, low, high


def observed(metrics: Mapping[str, Any] | None) -> Answer | None:
    """What an ``attend`` summary's metrics say; None if they do not hold both regimes."""
    if metrics is None:
        return None
    try:
        shares = {
            entry["regime"]: entry["overall"]["prefix"]["future"] for entry in metrics["observed"]
        }
        sink, plain = (
            (share["mean"][0], share["low"][0], share["high"][0])
            for share in (shares[str(SINK)], shares[str(BIDIRECTIONAL)])
        )
        return answer(sink, plain, int(metrics["n_items"]))
    except (KeyError, IndexError, TypeError):
        return None


def same_prompts(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two runs' settings are of one model and one way of making prompts."""
    usual = {"bos": "auto", "chat_template": False, "repeat_prompt": 1}
    return all(
        (first.get(name) or usual.get(name)) == (second.get(name) or usual.get(name))
        for name in SAME
    )


def largest_summary(settings: Mapping[str, Any], runs: Iterable[Any]) -> Any:
    """The ``attend`` summary of most items that answers for a sweep of these settings; of equal
    ones the first, None without any. ``runs``: runs, or what a page made of them."""
    summaries = [
        run
        for run in runs
        if same_prompts(settings, run.settings) and observed(run.metrics) is not None
    ]
    return max(summaries, key=lambda run: int((run.metrics or {})["n_items"]), default=None)


def answer(sink: Mean, plain: Mean, n: int) -> Answer:
    _, low, high = sink
    outcome: Outcome = "undecided"
    if not math.isnan(low):
        outcome = "supports" if low > TRIVIAL else "refutes" if high < TRIVIAL else "undecided"
    return outcome, (
        f"Under sink=1 prompt tokens send {_percent(*sink)} of their attention to tokens "
        f"ahead of them (mean over layers and heads, {formatting.count(n)} items); under plain "
        f"bidirectional prefill {_percent(*plain)}."
    )


def mean(values: list[float]) -> Mean:
    """A mean over items with Student's 95 % interval, NaN for a single one."""
    from scipy.stats import t

    numbers = np.asarray(values, dtype=np.float64)
    middle = float(numbers.mean()) if len(numbers) else math.nan
    if len(numbers) < 2:
        return middle, math.nan, math.nan
    reach = float(t.ppf(0.5 + stats.CONFIDENCE / 2, len(numbers) - 1))
    half = reach * float(numbers.std(ddof=1)) / math.sqrt(len(numbers))
    return middle, middle - half, middle + half


def _percent(mean: float, low: float, high: float) -> str:
    interval = (
        "no interval" if math.isnan(low) else f"95 % CI {100 * low:.1f} to {100 * high:.1f} %"
    )
    return f"{100 * mean:.1f} % ({interval})"
