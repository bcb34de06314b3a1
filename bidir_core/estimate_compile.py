"""``--compile`` and ``--attn flex``: what compiling adds before the work keeps its pace.

Finished runs say it: their curve has the seconds up to the first line, most of which is compiling,
and the pace of the later ones, which alone says something about a rate.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bidir_core.store import Run
from bidir_core.training.curve import read_curve


class Compiling(NamedTuple):
    """Seconds, and how few or many they may be."""

    usual: float
    low: float
    high: float
    why: str = ""


NOTHING = Compiling(0.0, 0.0, 0.0)
# Usual: the median of the eleven compiled fine-tunes in benchmarks/timed_runs (135M, H200). Low:
# the one of them that found the kernels of an earlier process. High: 3.43 B with flex, two steps of warm-up
# included (docs/PERFORMANCE.md).
ASSUMED = Compiling(
    7.0,
    0.7,
    44.0,
    "compiling: 7 s assumed (0.7 to 44 s were seen on GPUs), part of it once a shape",
)
# On a GPU flex compiles its kernel without --compile, too. How long by itself nobody has measured.
FLEX_ALONE = "attention flex: compiled on a GPU at its first use, which comes on top (not measured)"
FLEX_AND_MORE = (
    "attention flex: compiled as well (44 s in all were seen at 3.43 B, warm-up included)"
)
# Launches that are left where a step is recorded and replayed: of 126 ms a step 48.5 are, of which
# 16 are computing (docs/PERFORMANCE.md; 135M, one H100).
REPLAYED = 0.25


class Paced(NamedTuple):
    """``step_seconds`` of steps once they keep their pace; ``before``: what went beside them."""

    step_seconds: float
    before: float


def mode_of(settings: Mapping[str, Any]) -> str:
    """none, default or reduce-overhead, from recorded settings; older ones hold a bool."""
    value = settings.get("compile") or "none"
    return "default" if value is True else str(value)


def launches_left(mode: str) -> float:
    """The share of a step's launches that still take their time."""
    return REPLAYED if mode == "reduce-overhead" else 1.0


def paced(run: Run) -> Paced | None:
    """From a fine-tune's curve; None where it has under two lines of training."""
    try:
        lines = [one for one in read_curve(run.path) if "loss" in one]
        ends = [(int(one["step"]), float(one["seconds"])) for one in lines]
    except (KeyError, TypeError, ValueError):
        return None
    if len(ends) < 2 or ends[-1][0] <= ends[0][0]:
        return None
    (first, begun), (last, done) = ends[0], ends[-1]
    each = (done - begun) / (last - first)
    return Paced(each, max(0.0, begun - first * each)) if each > 0 else None


def flex_remark(attn: str, kind: str, mode: str = "none") -> str:
    """What an estimate on such a device doesn't count of ``--attn``; empty where it counts all."""
    if attn != "flex" or kind != "gpu":
        return ""
    return FLEX_ALONE if mode == "none" else FLEX_AND_MORE


def compiling(mode: str, before: Sequence[float]) -> Compiling:
    """What to add for ``mode``; ``before``: what compiled runs on this machine took."""
    if mode == "none":
        return NOTHING
    if not before:
        return ASSUMED
    usual, n = statistics.median(before), len(before)
    why = f"compiling: {usual:.1f} s, measured here, {n} run{'s'[: n > 1]}"
    return Compiling(usual, min(before) / 2, max(before) * 2, why)
