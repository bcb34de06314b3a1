"""Prompt order on the Lab page: a sweep's points on order tasks, or evaluations run one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import streamlit as st

from bidir_core.analyse.order_effects import (
    OrderArm,
    family_words,
    order_arms,
    order_sentence,
)
from bidir_core.analyse.stats import Estimate
from bidir_core.analyse.verdict import judge
from bidir_core.common.errors import UserError
from bidir_core.data.items import has_orders
from bidir_core.runs.layout import STAGE1
from bidir_ui.kit import fmt, html, widgets
from bidir_ui.reading.data import BY_CHANGE, RunInfo, run_of

Arms = dict[str, list[OrderArm]]


@dataclass(frozen=True)
class OrderSet:
    """A causal run of order tasks, and the model's other runs on the same documents."""

    baseline: RunInfo
    others: tuple[RunInfo, ...]

    @property
    def id(self) -> str:
        return self.baseline.id

    @property
    def title(self) -> str:
        model = self.baseline.model.rpartition("/")[2]
        arms = f"{len(self.others) + 1} runs"
        return " · ".join(
            ("prompt order", model, self.baseline.extent, arms, self.baseline.created)
        )


def order_sets(runs: Sequence[RunInfo]) -> list[OrderSet]:
    """Sets of finished evaluations on order tasks that differ by regime, repeated prompt or
    training alone, newest first; the newest run of each kind."""
    finished = [
        run
        for run in runs
        if run.is_evaluation and run.is_done and run.can_pair and not run.is_point
        if has_orders(list(run.tasks))
    ]
    sets = []
    for baseline in finished:
        if baseline.stage != STAGE1 or baseline.variant:
            continue
        kinds: dict[Any, RunInfo] = {}
        for run in finished:
            if _items(run) == _items(baseline) and _kind(run) != _kind(baseline):
                kinds.setdefault(_kind(run), run)
        sets.append(OrderSet(baseline, tuple(sorted(kinds.values(), key=_place))))
    return sets


def _items(run: RunInfo) -> Any:
    """The documents and the number format, whether or not the prompt is repeated."""
    return [part for part in run.item_set if part[0] != "repeat_prompt"], run.dtype


def _kind(run: RunInfo) -> Any:
    return run.regime, run.variant, run.checkpoint


def _place(run: RunInfo) -> Any:
    return bool(run.checkpoint), bool(run.variant), run.regime


@st.cache_data(max_entries=16, show_spinner=False, hash_funcs=BY_CHANGE)
def arms_of(order_set: OrderSet, metric: str) -> Arms:
    """What its runs answer, by family. UserError for runs that do not pair."""
    baseline, *others = map(run_of, (order_set.baseline, *order_set.others))
    return order_arms(baseline, others, metric=metric)


def stored(by_family: dict[str, Any]) -> Arms:
    """Arms as a sweep's metrics have them."""
    return {family: [OrderArm.from_json(arm) for arm in arms] for family, arms in by_family.items()}


def show(order_set: OrderSet, metric: str) -> None:
    """The page of a set of evaluations."""
    try:
        with widgets.waiting("Pairing both orders", 40, 64, 320):
            arms = arms_of(order_set, metric)
    except UserError as error:
        widgets.banner("error", "These runs do not pair", str(error))
        return
    panel(arms, order_set.id)


def panel(arms: Arms, ident: str) -> None:
    """Each family's answer in a sentence, as a chart and with all its numbers."""
    widgets.heading("Passage before the question, or after it")
    widgets.note(
        "The same documents in both orders, paired. The order gap is causal's accuracy with the "
        "passage first minus with it last; an arm recovers a share of it by answering the harder "
        "order better. 95 % intervals. The prompt given twice is what a gain has to beat or match; "
        "seconds and memory are of a whole run."
    )
    for family, rows in arms.items():
        with st.container(border=True, key=f"order-{family}"):
            name = html.el("b", family_words(family))
            html.show(html.div("b", name, html.el("br"), fmt.tie(order_sentence(rows))))
            _chart(rows)
            frame = pd.DataFrame(flat(family, rows))
            widgets.numbers(frame, f"{ident}-{family}.csv", key=f"order-{family}")


def _chart(rows: Sequence[OrderArm]) -> None:
    changes = [(arm.words, arm.recovered.last_change) for arm in rows if arm.recovered is not None]
    dots = [widgets.interval(label, change.value, judge(change)) for label, change in changes]
    if dots:
        widgets.intervals(dots, "Passage last: accuracy, points to causal")


def flat(family: str, rows: Sequence[OrderArm]) -> list[dict[str, Any]]:
    """Every number of every arm, a line each; shares as fractions."""
    lines = []
    for arm in rows:
        line: dict[str, Any] = {"family": family, "arm": arm.words, "run": arm.run}
        line |= {"n": arm.effect.n, "first": arm.effect.first.value, "last": arm.effect.last.value}
        changes: dict[str, Estimate | None] = {"gap": arm.effect.gap}
        if arm.recovered is not None:
            changes |= {
                "first_to_causal": arm.recovered.first_change,
                "last_to_causal": arm.recovered.last_change,
                "gap_recovered": arm.recovered.share,
            }
        for name, estimate in changes.items():
            for end in ("value", "low", "high"):
                line[f"{name}_{end}"] = None if estimate is None else getattr(estimate, end)
        line |= {"first_gold_prob": arm.effect.first_prob, "last_gold_prob": arm.effect.last_prob}
        line |= {"prompt_tokens": arm.prompt_tokens, "seconds": arm.seconds}
        lines.append(line | {"peak_bytes": arm.peak_bytes})
    return lines
