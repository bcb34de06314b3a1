"""Which runs are compared when nobody named any: a pair, and what a run is compared with.

Runs come newest first. Callers pass their own records of runs, of which these read ``id, model, stage,
regime, dtype, limit, context, variant, compact, item_set``, ``can_pair`` (it holds scored items, complete
or not), ``is_done``, ``is_imported`` and ``is_point``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.runs.layout import STAGE1, STAGE2

LIMIT = 500  # of the published runs


R = TypeVar("R", bound=Any)


def same_items(a: Any, b: Any) -> bool:
    """The same items of the same model in the same number format: fit to be partners."""
    return (a.item_set, a.dtype) == (b.item_set, b.dtype)


def default_pair(runs: Sequence[R]) -> tuple[R | None, R | None]:
    """Stage 1 and plain stage 2 of one model on the same items: the embedded model at limit 500
    if there is one, else the newest such pair, else the two newest runs with items."""
    usable = [run for run in runs if run.can_pair and run.context == "full" and not run.is_point]

    def rank(run: R) -> tuple[bool, ...]:
        usual = (run.model == EMBEDDED_MODEL, run.limit == LIMIT)
        plain = (not run.compact, run.dtype == "float32")
        return (run.is_done, not run.is_imported, not run.variant, *usual, *plain)

    ranked = sorted(usable, key=rank, reverse=True)
    firsts = [run for run in ranked if run.stage == STAGE1]
    for first in firsts:
        for second in ranked:
            plain = second.stage == STAGE2 and second.regime == "bidirectional"
            if plain and same_items(first, second) and first.is_done == second.is_done:
                return first, second
    if firsts:
        others = [run for run in usable if run.id != firsts[0].id]
        alike = [run for run in others if same_items(run, firsts[0])]
        return firsts[0], next(iter(alike or others), None)
    return (usable[1], usable[0]) if len(usable) > 1 else (next(iter(usable), None), None)


def baseline_of(runs: Sequence[R], candidate: R, wanted: R | None) -> R | None:
    """What to compare ``candidate`` with: ``wanted`` if it took the same items, else the newest
    finished stage 1 that did; None without either. Of an unfinished candidate the items count
    that it was started with."""

    def fits(run: R) -> bool:
        alike = same_items(run, candidate) and run.context == candidate.context
        return (
            alike and run.is_done and run.can_pair and candidate.can_pair and run.id != candidate.id
        )

    if wanted is not None and fits(wanted):
        return wanted
    return next((r for r in runs if r.stage == STAGE1 and not r.is_point and fits(r)), None)
