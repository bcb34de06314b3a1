"""Triviality: is bidirectional attention still used under ``sink=1``, or did it stop mattering?

Two sources answer by one rule. A sweep with controls measures a few items of each task itself; an
``attend`` summary of the same model, made before or after, has more.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from bidir_core import stats, words
from bidir_core.lab.control_answers import NOT_RUN, Answer, Outcome
from bidir_core.lab.control_points import ATTENTION_FILE
from bidir_core.lab.points import SINK
from bidir_core.pairing import pair
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL

if TYPE_CHECKING:
    from bidir_core.lab.summary import Sweep

TRIVIAL = 0.02  # less attention on future tokens than this would make them irrelevant
SAME = (
    "model",
    "revision",
    "checkpoint",
    "chat_template",
    "bos",
)  # settings, of one model and prompt

R = TypeVar("R", bound="Recorded")
Mean = tuple[float, float, float]  # mean, low, high


class Recorded(Protocol):
    """A run, or what a page made of one."""

    @property
    def settings(self) -> Mapping[str, Any]: ...

    @property
    def metrics(self) -> Mapping[str, Any] | None: ...


def triviality(sweep: Sweep) -> Answer:
    """What the sweep's own measurement says."""
    try:
        value = json.loads((sweep.run.path / ATTENTION_FILE).read_text(encoding="utf-8"))
        regimes = value["regimes"]
        sink, plain = (regimes[str(regime)]["future"] for regime in (SINK, BIDIRECTIONAL))
    except (OSError, ValueError, KeyError, TypeError):
        return NOT_RUN
    outcome, finding = _answer(_mean(sink), _mean(plain), len(sink))
    return outcome, finding + _changed_answers(sweep)


def observed(metrics: Mapping[str, Any] | None) -> Answer | None:
    """What an ``attend`` summary's metrics say; None if they do not hold both regimes."""
    if metrics is None:
        return None
    try:
        shares = {one["regime"]: one["overall"]["prefix"]["future"] for one in metrics["observed"]}
        sink, plain = (
            (share["mean"][0], share["low"][0], share["high"][0])
            for share in (shares[str(SINK)], shares[str(BIDIRECTIONAL)])
        )
        return _answer(sink, plain, int(metrics["n_items"]))
    except (KeyError, IndexError, TypeError):
        return None


def same_prompts(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two runs' settings are of one model and one way of making prompts."""
    usual = {"bos": "auto", "chat_template": False}
    return all(
        (first.get(name) or usual.get(name)) == (second.get(name) or usual.get(name))
        for name in SAME
    )


def largest_summary(settings: Mapping[str, Any], runs: Iterable[R]) -> R | None:
    """The ``attend`` summary of most items that answers for a sweep of these settings; of equal
    ones the first."""
    fit = [
        run
        for run in runs
        if same_prompts(settings, run.settings) and observed(run.metrics) is not None
    ]
    return max(fit, key=lambda run: int((run.metrics or {})["n_items"]), default=None)


def together(*outcomes: Outcome) -> Outcome:
    """One word for what several sources say: undecided ones give way, contrary ones are partly."""
    decided = set(outcomes) - {"undecided"}
    if len(decided) > 1:
        return "partly"
    return decided.pop() if decided else "undecided"


def _answer(sink: Mean, plain: Mean, n: int) -> Answer:
    _, low, high = sink
    outcome: Outcome = "undecided"
    if not math.isnan(low):
        outcome = "supports" if low > TRIVIAL else "refutes" if high < TRIVIAL else "undecided"
    return outcome, (
        f"Under sink=1 prompt tokens send {_percent(*sink)} of their attention to tokens "
        f"ahead of them (mean over layers and heads, {words.count(n)} items); under plain "
        f"bidirectional prefill {_percent(*plain)}."
    )


def _changed_answers(sweep: Sweep) -> str:
    """How often sink=1 answers otherwise than causal: a mask that did nothing would never."""
    causal, sink = (sweep.slug_of(str(regime), sweep.usual) for regime in (CAUSAL, SINK))
    if causal is None or sink is None:
        return ""
    pairs = pair(sweep.runs[causal], sweep.runs[sink], "acc", intersect=True)
    changed = int((pairs.pred_a != pairs.pred_b).sum())
    return (
        f" It answers {100 * changed / pairs.n:.1f} % of the items otherwise than causal "
        f"({words.count(changed)} of {words.count(pairs.n)})."
    )


def _mean(values: list[float]) -> Mean:
    """A mean over items with its normal 95 % interval."""
    found = np.asarray(values, dtype=np.float64)
    mean = float(found.mean()) if len(found) else math.nan
    if len(found) < 2:
        return mean, math.nan, math.nan
    half = stats.Z_95 * float(found.std(ddof=1)) / math.sqrt(len(found))
    return mean, mean - half, mean + half


def _percent(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:.1f} % (95 % CI {100 * low:.1f} to {100 * high:.1f} %)"
