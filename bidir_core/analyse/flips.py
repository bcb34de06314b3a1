"""One row per paired item: what changed its answer, and by how much."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from bidir_core.analyse import stats
from bidir_core.analyse.pairing import PairedItems, is_imported, pair
from bidir_core.analyse.verdict import Judgement, judge
from bidir_core.runs.run import Run, choice_probabilities

FLIPS = ("broken", "fixed", "changed_wrong", "same_right", "same_wrong")
CONTEXT_CHARACTERS = 120


def flips(run_a: Run, run_b: Run, metric: str = "acc", *, intersect: bool = False) -> pd.DataFrame:
    """All paired items, with their flip class and margins. UserError if the runs do not pair.

    ``margin_*`` is ll[gold] minus the best other ll, in nats, and ``margin_change`` second minus
    first (negative: the gold lost ground). ``gold_prob_*`` is the softmax over the choices at the
    gold. ``n_prefix_tokens`` is the longest context's, ``n_gold_tokens`` the gold choice's.
    ``context_short`` is the end of the context for few-shot runs and its start otherwise, empty
    for compact runs. Token counts that neither run recorded are 0.
    """
    return flips_of(pair(run_a, run_b, metric, intersect=intersect))


def flips_of(pairs: PairedItems) -> pd.DataFrame:
    """As :func:`flips`, of items paired already."""
    columns = ("ll", "margin", "n_prefix_tokens", "n_continuation_tokens", "prompt_group")
    table_a = pairs.run_a.items_table(columns).take(pairs.rows_a)
    table_b = pairs.run_b.items_table(columns).take(pairs.rows_b)
    # An imported run counts no tokens; of two of them a list may hold None.
    token_table = table_b if is_imported(pairs.run_a) else table_a
    margin_a, margin_b = (
        table.column("margin").to_numpy().astype(np.float64) for table in (table_a, table_b)
    )
    lengths, choices = (token_table.column(name).to_pylist() for name in columns[2:4])
    task = pd.Series(pairs.task, dtype="str")
    return pd.DataFrame(
        {
            "item_id": task + "/" + pd.Series(pairs.doc_id).astype("str"),
            "task": task,
            "doc_id": pairs.doc_id,
            "flip": pairs.flip,
            "margin_a": margin_a,
            "margin_b": margin_b,
            "margin_change": margin_b - margin_a,
            "pred_a": pairs.pred_a,
            "pred_b": pairs.pred_b,
            "gold": pairs.gold,
            "gold_prob_a": choice_probabilities(table_a.column("ll"), pairs.gold),
            "gold_prob_b": choice_probabilities(table_b.column("ll"), pairs.gold),
            "n_prefix_tokens": [max((n or 0 for n in ns or ()), default=0) for ns in lengths],
            "n_gold_tokens": [
                (ns[gold] if ns else None) or 0 for ns, gold in zip(choices, pairs.gold)
            ],
            "n_choices": pairs.n_choices,
            "prompt_group": table_a.column("prompt_group").to_pandas().fillna(""),
            "context_short": _short_contexts(pairs),
        }
    )


def _short_contexts(pairs: PairedItems) -> pd.Series:
    """120 characters of the first context on one line, from whichever run has texts."""
    for run, rows in ((pairs.run_a, pairs.rows_a), (pairs.run_b, pairs.rows_b)):
        if run.is_compact:
            continue
        contexts = run.items_table(("contexts",)).column("contexts").combine_chunks().take(rows)
        if contexts.null_count == len(contexts):
            continue
        first = pc.list_element(contexts, 0)
        if run.settings.get("num_fewshot"):
            short = pc.utf8_slice_codeunits(first, -CONTEXT_CHARACTERS, None)
        else:
            short = pc.utf8_slice_codeunits(first, 0, CONTEXT_CHARACTERS)
        short = pc.replace_substring(pc.replace_substring(short, "\n", " "), "\r", " ")
        return short.fill_null("").to_pandas()
    return pd.Series([""] * pairs.n, dtype="str")


# The paired difference within slices of the items: by prefix length, choice length, gold.


@dataclass(frozen=True)
class Slice:
    """The items of one label, pooled over tasks."""

    label: str
    estimate: stats.Estimate
    judgement: Judgement
    broken: int
    fixed: int


def bands(values: pd.Series) -> pd.Series:
    """Labels ``A to B`` that cut integer values into about five equally filled bands."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, 6)).astype(int))
    if len(edges) < 2:
        return pd.Series(f"{edges[0]}", index=values.index)
    lows, highs = edges[:-1], [*(edges[1:-1] - 1), edges[-1]]  # the last band has its end
    names = [f"{low} to {high}" if low < high else f"{low}" for low, high in zip(lows, highs)]
    return pd.cut(values, [*lows, edges[-1] + 1], right=False, labels=names)


def slices(flips: pd.Series, labels: pd.Series) -> list[Slice]:
    """One for each label that has at least ``stats.MIN_ITEMS`` items. ``flips``: each item's class,
    as :mod:`bidir_core.analyse.flips` names them."""
    kept = []
    for label, part in flips.groupby(labels, observed=True, sort=True):
        if len(part) < stats.MIN_ITEMS:
            continue
        tally = part.value_counts()
        right, broken, fixed = (
            int(tally.get(name, 0)) for name in ("same_right", "broken", "fixed")
        )
        wrong = len(part) - right - broken - fixed
        estimate = stats.paired_interval(stats.Table2x2(right, broken, fixed, wrong))
        judgement = judge(estimate, p_values=[stats.mcnemar_exact(broken, fixed)])
        kept.append(Slice(str(label), estimate, judgement, broken, fixed))
    return kept
