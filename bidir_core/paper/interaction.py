"""The interaction of an arm and its control as entries of the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from bidir_core import stats, words
from bidir_core.paper.fields import MACRO
from bidir_core.paper.ledger import End, Entry
from bidir_core.paper.verdict_words import verdict_words
from bidir_core.reporting.arms import Arm

if TYPE_CHECKING:
    from bidir_core.paper.quantities import Quantities


class Interaction:
    """(arm - control under the arm's regime) - (arm - control under causal), by task."""

    def __init__(
        self,
        quantities: Quantities,
        arm: Arm,
        control: Arm,
        estimates: Mapping[str, stats.Estimate],
        lists: list[list[str]],
    ):
        self.quantities, self.arm, self.control = quantities, arm, control
        self.estimates, self.lists = estimates, lists

    def entry(self, task: str = MACRO, part: End = "value") -> Entry:
        value = getattr(self.estimates[task], part)
        text = words.points(value, signed=True)
        return self._add(f"{task}/{part}", value, text, "interaction", task=task, part=part)

    def items(self, task: str = MACRO) -> Entry:
        n = self.estimates[task].n
        return self._add(f"{task}/n", n, words.count(n), "items", task=task)

    def verdict(self, task: str = MACRO) -> Entry:
        margin = self.quantities.margin
        text = verdict_words(self.estimates[task], margin)
        return self._add(f"{task}/verdict", text, text, "verdict", "text", task=task, margin=margin)

    def _add(
        self, key: str, value: Any, text: str, statistic: str,
        style: Literal["number", "text"] = "number", **source: Any,
    ) -> Entry:  # fmt: skip
        return self.quantities.ledger.add(
            f"interaction {self.arm.title}/{key}", value, text,
            [run for one in self.lists for run in one], style=style, statistic=statistic, **source,
            metric=self.quantities.metric, arms=self.lists,
        )  # fmt: skip
