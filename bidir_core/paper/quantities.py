"""The study's numbers as entries of the ledger: every accuracy, difference, interval and name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from bidir_core import words
from bidir_core.pairing import Metric
from bidir_core.paper.fields import MACRO, lookup
from bidir_core.paper.interaction import Interaction
from bidir_core.paper.ledger import End, Entry, Ledger
from bidir_core.paper.verdict_words import verdict_words
from bidir_core.reporting.arms import Arm
from bidir_core.reporting.contrast import Contrast, TaskDelta
from bidir_core.reporting.contrasts import cell_title, interaction, interaction_runs
from bidir_core.reporting.numbers import Numbers
from bidir_core.reporting.printed import level, task_accuracy
from bidir_core.reporting.run_tables import labelled_runs
from bidir_core.reporting.study import Cell, Study
from bidir_core.store import Run


class Quantities:
    """Makes and remembers the entries of one study."""

    def __init__(self, numbers: Numbers):
        self.numbers = numbers
        self.study: Study = numbers.study
        self.metric: Metric = numbers.metric
        self.margin: float = numbers.margin
        self.ledger = Ledger()
        self.all_runs = list(dict.fromkeys(run.id for run in self.study.all_runs))
        self.evaluations = [
            run.id for by_seed in self.study.cells.values() for run in by_seed.values()
        ]
        self.names = {run.id: what for what, _, run in labelled_runs(self.study)}

    # --- names ------------------------------------------------------------------------------

    def cell(self, cell: Cell) -> Entry:
        """``stage 2``, with the runs that it is."""
        title = cell_title(self.study, cell)
        return self.title(title, [run.id for run in self.study.runs(*cell).values()])

    def title(self, text: str, runs: Iterable[str]) -> Entry:
        found = list(runs)
        return self.ledger.add(f"name/{text}", text, text, found, style="text", statistic="name")

    def arm(self, arm: Arm) -> Entry:
        """``3B (method lora)``, with its fine-tunes, else with the runs of its checkpoints."""
        runs = [run.id for run in self.study.finetunes.get(arm, {}).values()]
        if not runs:
            cells = [by for (one, _), by in self.study.cells.items() if one == arm]
            runs = [run.id for by_seed in cells for run in by_seed.values()]
        return self.title(arm.title, runs)

    def task(self, name: str) -> Entry:
        return self.ledger.add(
            f"task/{name}", name, name, self.evaluations, style="code", statistic="name"
        )

    def regime(self, text: str) -> Entry:
        runs = [run.id for run in self.study.all_runs if run.regime == text] or self.all_runs
        return self.ledger.add(
            f"regime/{text}", text, text, runs, style="code", statistic="values",
            file="config.json", field="config.regime",
        )  # fmt: skip

    def ends(self, contrast: Contrast) -> tuple[Entry, Entry]:
        """The names of both sides of a contrast: (b, a), as in "b minus a"."""
        return (
            self.title(contrast.b, [b for _, b in contrast.runs]),
            self.title(contrast.a, [a for a, _ in contrast.runs]),
        )

    # --- facts of the run folders -----------------------------------------------------------

    def constant(self, name: str, value: Any, text: str) -> Entry:
        """A constant of the analysis."""
        return self.ledger.add(
            f"analysis/{name}", value, text, self.evaluations, statistic="constant", name=name
        )

    def fact(
        self,
        key: str,
        runs: Iterable[Run],
        file: str,
        field: str,
        show: Callable[[Any], str] = str,
        *,
        style: Literal["number", "text", "code"] = "number",
    ) -> Entry | None:
        """The one value that a field has in all of these runs; None unless all say the same."""
        found = list(runs)
        values = [lookup(run, file, field) for run in found]
        if not values or values[0] is None or any(value != values[0] for value in values):
            return None
        return self.ledger.add(
            key, values[0], show(values[0]), [run.id for run in found], style=style,
            statistic="values", file=file, field=field,
        )  # fmt: skip

    def facts(
        self,
        key: str,
        runs: Iterable[Run],
        file: str,
        field: str,
        show: Callable[[Any], str] = str,
        *,
        style: Literal["number", "text", "code"] = "number",
    ) -> list[Entry]:
        """Every value that a field has in these runs, each with the runs that have it."""
        by_value: dict[str, list[Run]] = {}
        for run in runs:
            value = lookup(run, file, field)
            if value is not None:
                by_value.setdefault(str(value), []).append(run)
        return [
            entry
            for value, group in by_value.items()
            if (entry := self.fact(f"{key}/{value}", group, file, field, show, style=style))
        ]

    def total(self, key: str, runs: Iterable[Run], file: str, field: str) -> Entry | None:
        """The sum of a field over these runs; None if one of them does not have it."""
        found = list(runs)
        values = [lookup(run, file, field) for run in found]
        if not values or any(not isinstance(value, int | float) for value in values):
            return None
        return self.ledger.add(
            key, sum(values), words.count(sum(values)), [run.id for run in found],
            statistic="sum", file=file, field=field,
        )  # fmt: skip

    # --- accuracies -------------------------------------------------------------------------

    def accuracy(self, cell: Cell, task: str = MACRO, metric: Metric | None = None) -> Entry | None:
        """A cell's accuracy, mean over its seeds."""
        metric = metric or self.metric
        runs = list(self.study.runs(*cell).values())
        if task == MACRO:
            values, field = [lookup(r, "metrics.json", f"macro.{metric}") for r in runs], metric
        else:
            values = [task_accuracy(run, task, metric) for run in runs]
            rows = [((run.metrics or {}).get("tasks") or {}).get(task) or {} for run in runs]
            # As in the macro: a task without acc_norm counts with its acc.
            field = metric if all(row.get(metric) is not None for row in rows) else "acc"
        if not values or any(value is None for value in values):
            return None
        value = sum(values) / len(values)
        where = f"macro.{field}" if task == MACRO else f"tasks.{task}.{field}"
        return self.ledger.add(
            f"{cell_title(self.study, cell)}/{task}/{metric}", value, f"{value:.4f}",
            [run.id for run in runs], statistic="field", file="metrics.json", field=where,
        )  # fmt: skip

    def level(self, cell: Cell) -> tuple[Entry, Entry] | None:
        """The ends of the interval of a cell's macro accuracy."""
        runs = self.study.runs(*cell)
        found = level(runs, self.metric)
        if found is None or found.interval is None:
            return None
        low, high = (
            self.ledger.add(
                f"{cell_title(self.study, cell)}/{MACRO}/{self.metric}/{end}", value,
                f"{value:.4f}", [run.id for run in runs.values()],
                statistic="level", metric=self.metric, part=end,
            )
            for end, value in (("low", found.interval.low), ("high", found.interval.high))
        )  # fmt: skip
        return low, high

    # --- differences ------------------------------------------------------------------------

    def difference(self, one: Contrast, task: str = MACRO, part: End = "value") -> Entry | None:
        """b minus a in points, or an end of its interval."""
        if task == MACRO:
            value = one.value if part == "value" else getattr(one.interval, part, None)
        else:
            row = _row(one, task)
            value = row.delta if part == "value" else getattr(row.interval, part, None)
        if value is None:
            return None
        statistic = "paired" if one.basis == "paired" else "unpaired"
        text = words.points(value, signed=True)
        return self._of(one, f"{task}/{part}", value, text, statistic, task=task, part=part)

    def interval(self, one: Contrast, task: str = MACRO) -> tuple[Entry, Entry] | None:
        low, high = self.difference(one, task, "low"), self.difference(one, task, "high")
        return (low, high) if low is not None and high is not None else None

    def side(self, one: Contrast, task: str, side: Literal["a", "b"]) -> Entry:
        """The accuracy of one side of a contrast; of a task, over the items of the pairs."""
        value = getattr(one if task == MACRO else _row(one, task), f"acc_{side}")
        key, text = f"{task}/acc-{side}", f"{value:.4f}"
        if task != MACRO and one.basis == "paired":
            return self._of(one, key, value, text, "paired", task=task, part=f"acc_{side}")
        runs = [pair[side == "b"] for pair in one.runs]
        where = f"macro.{self.metric}" if task == MACRO else f"tasks.{task}.{self.metric}"
        return self.ledger.add(
            f"{one.b} minus {one.a}/{key}", value, text, runs,
            statistic="field", file="metrics.json", field=where,
        )  # fmt: skip

    def items(self, one: Contrast, task: str = MACRO) -> Entry | None:
        n = one.n if task == MACRO else _row(one, task).n
        return self._of(one, f"{task}/n", n, words.count(n), "items", task=task) if n else None

    def flips(self, one: Contrast, task: str, what: Literal["broken", "fixed"]) -> Entry | None:
        value = getattr(_row(one, task), what)
        if value is None:
            return None
        text = words.count(int(value)) if value == int(value) else f"{value:,.1f}"
        return self._of(one, f"{task}/{what}", value, text, "flips", task=task, part=what)

    def p_values(self, one: Contrast, task: str, kind: Literal["mcnemar", "holm"]) -> list[Entry]:
        """One p value for each pair of runs."""
        row = _row(one, task)
        values = row.p_values if kind == "mcnemar" else row.p_holm
        return [
            self._of(one, f"{task}/{kind}/{i}", p, words.p_text(p), kind, task=task, pair=i)
            for i, p in enumerate(values)
        ]

    def detectable(self, one: Contrast) -> Entry | None:
        if one.detectable is None:
            return None
        text = words.points(one.detectable)
        return self._of(one, "detectable", one.detectable, text, "detectable")

    def retention(
        self, one: Contrast, floor: Literal["chance", "no-context"], part: End = "value"
    ) -> Entry | None:
        """How much of a is kept in b above the floor, in percent; None if suppressed."""
        found = one.above_chance if floor == "chance" else one.above_floor
        value = getattr(found, part, None)
        if value is None:
            return None
        floor_run = self.study.floor.id if floor != "chance" and self.study.floor else None
        return self._of(
            one, f"kept-above-{floor}/{part}", value, f"{100 * value:.1f}", "retention",
            floor=floor_run or "chance", part=part, basis=one.basis,
        )  # fmt: skip

    def verdict(self, one: Contrast, task: str = MACRO) -> Entry:
        """The word for a difference; for a task also after Holm's adjustment."""
        row = one if task == MACRO else _row(one, task)
        interval, p_holm = row.interval, getattr(row, "p_holm", ())
        text = verdict_words(interval, self.margin, p_holm)
        extra = {"task": task, "margin": self.margin}
        return self._of(one, f"{task}/verdict", text, text, "verdict", style="text", **extra)

    def _of(
        self,
        one: Contrast,
        key: str,
        value: Any,
        text: str,
        statistic: str,
        *,
        style: Literal["number", "text", "code"] = "number",
        **source: Any,
    ) -> Entry:
        runs = [run for pair in one.runs for run in pair]
        if source.get("floor", "chance") != "chance":
            runs.append(source["floor"])
        return self.ledger.add(
            f"{one.b} minus {one.a}/{key}", value, text, runs, style=style,
            statistic=statistic, **source, metric=self.metric,
            pairs=[list(pair) for pair in one.runs],
        )  # fmt: skip

    # --- the interaction --------------------------------------------------------------------

    def interaction(self, arm: Arm) -> Interaction | str:
        """The arm's interaction with its control, or why there is none."""
        found = interaction(self.study, arm, metric=self.metric)
        runs = interaction_runs(self.study, arm)
        if isinstance(found, str) or isinstance(runs, str):
            return found if isinstance(found, str) else str(runs)
        lists = [[run.id for run in one] for one in runs[0]]
        value = found[0]
        return Interaction(self, arm, runs[1], {MACRO: value.estimate, **value.per_task}, lists)


def _row(one: Contrast, task: str) -> TaskDelta:
    return next(row for row in one.tasks if row.task == task)
