"""Accuracy by pointwise mutual information: how much the context adds to a choice's probability.

lm-eval's ``acc_mutual_info``: the choice with the largest log p(choice | context) - log p(choice).
The second is what a run of the same model with ``--context none`` scored; without a context there
is nothing to look ahead at, so one such run serves every regime.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bidir_core.analyse import stats
from bidir_core.analyse.pairing import PairedItems, pair
from bidir_core.runs.run import Run


@dataclass(frozen=True)
class Information:
    """Macro accuracies of both runs, over the items that the floor holds too, and b minus a."""

    acc_a: float
    acc_b: float
    delta: stats.Estimate


def by_information(pairs: PairedItems, floor: Run) -> Information | None:
    """None unless ``floor`` is a no-context run of the one model of both runs, whose scores are kept."""
    models = {run.config.get("model_fingerprint") for run in (pairs.run_a, pairs.run_b, floor)}
    if floor.settings.get("context") != "none" or len(models) > 1 or None in models:
        return None
    a, b = (_right(run, floor) for run in (pairs.run_a, pairs.run_b))
    keys = [key for key in zip(pairs.task.tolist(), pairs.doc_id.tolist()) if key in a and key in b]
    keys_by_task = [[key for key in keys if key[0] == task] for task in pairs.tasks]
    if not all(keys_by_task):
        return None
    right_a = [np.array([a[key] for key in task_keys]) for task_keys in keys_by_task]
    right_b = [np.array([b[key] for key in task_keys]) for task_keys in keys_by_task]
    return Information(
        float(np.mean([right.mean() for right in right_a])),
        float(np.mean([right.mean() for right in right_b])),
        stats.macro_delta(list(map(stats.paired_delta, right_a, right_b))),
    )


def _right(run: Run, floor: Run) -> dict[tuple[str, int], bool]:
    """By task and doc_id, whether the gold is the choice that the context speaks for most."""
    pairs = pair(run, floor, intersect=True, check_context=False)
    lls, floor_lls = (
        source.items_table(("ll",)).column("ll").take(rows).to_pylist()
        for source, rows in ((run, pairs.rows_a), (floor, pairs.rows_b))
    )
    rows = zip(pairs.task.tolist(), pairs.doc_id.tolist(), pairs.gold.tolist(), lls, floor_lls)
    right = {}
    with np.errstate(invalid="ignore"):
        for task, doc_id, gold, ll_given, ll_alone in rows:
            # A run may be kept without its scores.
            if ll_given is not None and ll_alone is not None:
                gain = np.nan_to_num(np.subtract(ll_given, ll_alone), nan=-np.inf)
                right[task, doc_id] = bool(gain.argmax() == gold)
    return right
