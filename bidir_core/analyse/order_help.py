"""Does looking ahead help where the passage comes last? Every way of it against causal, at once.

A trial is one way of looking ahead on one order family (:mod:`.order_effects`): a regime of the
untrained model against it causal, or a repair fine-tune against its control left causal. Holm's
adjustment is over all trials. What answers no better than one and the same choice would has not
helped: a change of bias alone can gain there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bidir_core.analyse import stats
from bidir_core.analyse.order_effects import OrderAnswers, constant_guess, order_answers
from bidir_core.analyse.study import CAUSAL, Study, make_study
from bidir_core.analyse.verdict import Judgement, judge
from bidir_core.runs.run import Run


@dataclass(frozen=True)
class Trial:
    """``label``: what looks ahead. ``beyond_guess``: the candidate beats one constant answer."""

    family: str
    label: str
    baseline: Run
    candidate: Run
    judgement: Judgement
    beyond_guess: bool

    @property
    def helped(self) -> bool:
        return self.judgement.verdict == "better" and self.beyond_guess


def order_trials(runs: Sequence[Run]) -> list[Trial]:
    """Every trial that these runs of one model hold, of several seeds the first.

    UserError if there is no evaluation among them, or a document stands in one twice.
    """
    pairs = list(_pairs(make_study(runs, mixed_dtypes=False)))
    answers = {run.id: order_answers(run) for pair in pairs for run in pair[1:]}
    tables = [
        (pair, family, table)
        for pair in pairs
        for family, table in _tables(answers[pair[1].id], answers[pair[2].id]).items()
    ]
    p_values = [stats.mcnemar_exact(table.broken, table.fixed) for *_, table in tables]
    trials = []
    for (pair, family, table), p, p_holm in zip(tables, p_values, stats.holm(p_values)):
        label, baseline, candidate = pair
        judgement = judge(
            stats.paired_interval(table),
            broken=table.broken,
            fixed=table.fixed,
            p_values=[p],
            p_adjusted=[p_holm],
        )
        right = stats.proportion(table.both_right + table.fixed, table.n)
        guess = constant_guess(candidate, family) or 0.0
        trials.append(Trial(family, label, baseline, candidate, judgement, right.low > guess))
    return trials


def beside(trial: Trial, other: Run) -> Judgement | None:
    """The trial's candidate minus another run on its family; None where that did not answer it."""
    tables = _tables(order_answers(other), order_answers(trial.candidate))
    table = tables.get(trial.family)
    if table is None:
        return None
    p = stats.mcnemar_exact(table.broken, table.fixed)
    return judge(stats.paired_interval(table), p_values=[p])


def _pairs(study: Study) -> Iterator[tuple[str, Run, Run]]:
    """(what looks ahead, what it is compared with, its run)."""
    causal = study.runs(study.base, CAUSAL)
    cells = [
        (regime, causal, study.runs(study.base, regime))
        for regime in study.bidirectional_regimes(study.base)
    ]
    for arm in study.trained("3B"):
        control = study.control_of(arm) or next(iter(study.trained("3C")), None)
        if control is not None:
            own_regime = study.own_regime(arm)
            label = f"{own_regime} after a repair fine-tune"
            cells.append((label, study.runs(control, CAUSAL), study.runs(arm, own_regime)))
    for label, first, second in cells:
        if first and second:
            yield label, next(iter(first.values())), next(iter(second.values()))


def _tables(
    first: Mapping[str, OrderAnswers], second: Mapping[str, OrderAnswers]
) -> dict[str, stats.Table2x2]:
    """Right and wrong with the passage last, by family, over the documents that both answered."""
    tables = {}
    for family in [name for name in first if name in second]:
        a, b = first[family], second[family]
        _, rows_a, rows_b = np.intersect1d(
            a.pair_id, b.pair_id, assume_unique=True, return_indices=True
        )
        if len(rows_a):
            tables[family] = stats.table_2x2(a.last[rows_a], b.last[rows_b])
    return tables
