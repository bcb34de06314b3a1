"""The study's numbers as entries of the ledger: every accuracy, difference, interval and name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bidir_core.analyse import stats
from bidir_core.analyse.contrasts import (
    Contrast,
    TaskDelta,
    cell_title,
    interaction,
    interaction_runs,
    level,
    task_accuracy,
)
from bidir_core.analyse.pairing import Metric
from bidir_core.analyse.phrases import word
from bidir_core.analyse.study import Arm, Cell, Study
from bidir_core.analyse.verdict import judge
from bidir_core.common import formatting
from bidir_core.report import paper_latex
from bidir_core.report.answers import Numbers
from bidir_core.report.tables import labelled_runs
from bidir_core.runs.run import Run

# A field of a run's JSON file by its dotted name.

MACRO = "macro"  # in the place of a task: their mean


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
            key, sum(values), formatting.count(sum(values)), [run.id for run in found],
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
        text = formatting.points(value, signed=True)
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
        return self._of(one, f"{task}/n", n, formatting.count(n), "items", task=task) if n else None

    def flips(self, one: Contrast, task: str, what: Literal["broken", "fixed"]) -> Entry | None:
        value = getattr(_row(one, task), what)
        if value is None:
            return None
        text = formatting.count(int(value)) if value == int(value) else f"{value:,.1f}"
        return self._of(one, f"{task}/{what}", value, text, "flips", task=task, part=what)

    def p_values(self, one: Contrast, task: str, kind: Literal["mcnemar", "holm"]) -> list[Entry]:
        """One p value for each pair of runs."""
        row = _row(one, task)
        values = row.p_values if kind == "mcnemar" else row.p_holm
        return [
            self._of(one, f"{task}/{kind}/{i}", p, formatting.p_text(p), kind, task=task, pair=i)
            for i, p in enumerate(values)
        ]

    def detectable(self, one: Contrast) -> Entry | None:
        if one.detectable is None:
            return None
        text = formatting.points(one.detectable)
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


def lookup(run: Run, file: str, field: str) -> Any:
    """A dotted field of a run's JSON file, or None."""
    files = {"config.json": run.config, "metrics.json": run.metrics, "probe.json": run.probe}
    return _walk(files[file], field.split("."))


def _walk(value: Any, names: list[str]) -> Any:
    """Longest keys first: the name of a custom task may hold a dot."""
    for end in range(len(names), 0, -1):
        key = ".".join(names[:end])
        if isinstance(value, dict) and key in value:
            return _walk(value[key], names[end:])
    return None if names else value


# The interaction of an arm and its control as entries of the ledger.


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
        text = formatting.points(value, signed=True)
        return self._add(f"{task}/{part}", value, text, "interaction", task=task, part=part)

    def items(self, task: str = MACRO) -> Entry:
        n = self.estimates[task].n
        return self._add(f"{task}/n", n, formatting.count(n), "items", task=task)

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


# Every number that the paper prints: what it is, which runs it is from, and how it was got.

MACRO_NAME = r"\providecommand{\fromrun}[2]{#2}"

Style = Literal["number", "text", "code"]

End = Literal["value", "low", "high"]  # of a number with its interval

_PRINT = {"number": paper_latex.number, "text": paper_latex.escape, "code": paper_latex.code}

# What a ``statistic`` in ``numbers.json`` means.
STATISTICS = {
    "field": "the mean of this field over the runs, each from this file of its folder",
    "sum": "the sum of this field over the runs, each from this file of its folder",
    "values": "the different values of this field in the runs, each from this file of its folder",
    "count": "in how many of the runs the field is true; or how many entries the field has",
    "dial": "this dial of the regime in this field of the runs",
    "level": "an end of the normal interval of the mean macro accuracy, from the tasks' accuracies "
    "and n in metrics.json; with several seeds their variance over their number is added",
    "paired": "second minus first in share of right answers over the items that both runs of a "
    "pair could score, by task; Tango's interval; macro: the mean over tasks, intervals combined "
    "by MOVER; with several pairs (seeds): their mean, normal interval over items and seeds",
    "unpaired": "second minus first in metrics.json's accuracy; macro: normal interval from the "
    "tasks' accuracies and n",
    "flips": "items of a pair whose answer was right and became wrong (broken) or the other way "
    "(fixed), mean over the pairs",
    "mcnemar": "exact McNemar p value of the pair's broken and fixed items",
    "holm": "the exact McNemar p value after Holm's adjustment over the tasks of the contrast",
    "detectable": "the smallest true difference found with 80 % power, at the pair's discordance",
    "retention": "(second - floor) / (first - floor) in macro accuracy over the pair's items; "
    "percentile bootstrap, 10,000 resamples, seed 0; several seeds: the mean and the widest ends",
    "interaction": "the mean over tasks of the mean over items of (arm - control) under the regime "
    "minus (arm - control) under causal attention, in right answers; normal interval",
    "items": "how many items stand behind the number",
    "curve": "this field of the line of curve.jsonl at this step, mean over the runs",
    "name": "a name for these runs or for what was done in them",
    "verdict": "the number's whole interval, read with the margin",
    "constant": "a constant of the analysis, applied to these runs",
}


@dataclass(frozen=True)
class Entry:
    """One printed number or name. ``value`` is the unrounded one; ``source`` says how to get it."""

    key: str
    value: Any
    text: str
    runs: tuple[str, ...]
    source: tuple[tuple[str, Any], ...]
    style: Style = "number"

    def __str__(self) -> str:
        """As it stands in a TeX file."""
        return f"\\fromrun{{{self.key}}}{{{_PRINT[self.style](self.text)}}}"

    def to_json(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "value": self.value,
            "runs": list(self.runs),
            "source": dict(self.source),
        }


class Ledger:
    """The entries by key, in the order in which they were first printed."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def add(
        self,
        key: str,
        value: Any,
        text: str,
        runs: Iterable[str],
        *,
        style: Style = "number",
        **source: Any,
    ) -> Entry:
        """The entry of this key; another number of the same name gets another key.

        Raises ValueError for a number of no run: nothing is printed that cannot be traced.
        """
        entry = Entry(
            slug(key), value, text, tuple(dict.fromkeys(runs)), tuple(source.items()), style
        )
        if not entry.runs:
            raise ValueError(f"'{key}' ({text}) comes from no run")
        if source.get("statistic") not in STATISTICS:
            raise ValueError(f"'{key}': unknown statistic {source.get('statistic')!r}")
        base, copy = entry.key, 2
        while (known := self.entries.get(entry.key)) is not None and known != entry:
            entry = Entry(f"{base}-{copy}", value, text, entry.runs, entry.source, style)
            copy += 1
        return self.entries.setdefault(entry.key, entry)


class Sentence:
    """Words and entries, to be read as LaTeX or as plain text."""

    def __init__(self, *parts: str | Entry):
        self.parts = parts

    @property
    def tex(self) -> str:
        return "".join(str(p) if isinstance(p, Entry) else paper_latex.prose(p) for p in self.parts)

    @property
    def plain(self) -> str:
        return "".join(p.text if isinstance(p, Entry) else p for p in self.parts)

    @property
    def entries(self) -> list[Entry]:
        return [part for part in self.parts if isinstance(part, Entry)]


def slug(text: str) -> str:
    """A key: letters, digits, dots, dashes and slashes, which TeX reads as they are."""
    plain = re.sub(r"[^a-z0-9./+]+", "-", text.lower())
    return re.sub(r"-*(/|$)-*", r"\1", plain).lstrip("-") or "x"


# The word for a difference: from its interval, the margin and, of several tasks, Holm.

SIGNIFICANCE = 0.05


def verdict_words(
    interval: stats.Estimate | None, margin: float, p_holm: Iterable[float] = ()
) -> str:
    """The word of a judgement."""
    return word(judge(interval, margin=margin, p_adjusted=tuple(p_holm)))
