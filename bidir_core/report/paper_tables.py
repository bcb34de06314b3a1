"""The paper's tables: macro by stage, per task, the 2x2 with its interaction, training, runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bidir_core.analyse.contrasts import Contrast
from bidir_core.analyse.pairing import Metric
from bidir_core.analyse.study import CAUSAL, Arm, Cell, ordered_cells
from bidir_core.common import formatting
from bidir_core.report.paper_claims import Claim
from bidir_core.report.paper_latex import Tabular, wrapped
from bidir_core.report.paper_numbers import MACRO, Entry, Quantities
from bidir_core.report.tables import labelled_runs
from bidir_core.runs.run import Run

ABSENT = "--"


def all_tables(quantities: Quantities, claims: Sequence[Claim]) -> list[Tabular]:
    """Every table that has rows, in reading order."""
    maker = _Tables(quantities)
    made = (
        maker.macro(), maker.per_task(), maker.contrasts(), maker.two_by_two(), maker.interaction(),
        maker.training(), maker.claims(claims), maker.runs(),
    )  # fmt: skip
    return [table for table in made if table]


class _Tables:
    def __init__(self, quantities: Quantities):
        self.q, self.study, self.numbers = quantities, quantities.study, quantities.numbers
        self.level = quantities.constant("confidence", 0.95, "95 %")
        self.ci = f"{self.level} CI"

    def _cells(self) -> Iterator[Cell]:
        """Every cell but the leaky ones: their numbers are no result."""
        return (cell for cell in ordered_cells(self.study) if not cell[0].leaky)

    def macro(self) -> Tabular:
        q, stage1 = self.q, (self.study.base, CAUSAL)
        other: Metric = "acc_norm" if q.metric == "acc" else "acc"
        base = q.cell(stage1) if self.study.runs(*stage1) else "the causal base model"
        names = {"acc": "accuracy", "acc_norm": "length-normalised accuracy"}
        short = {"acc": "acc.", "acc_norm": "norm. acc."}
        table = Tabular(
            "macro",
            f"Macro {names[q.metric]} by stage, the unweighted mean over tasks"
            f"{self._n_items()}. Kept: what a stage keeps of {base}'s accuracy above chance, and "
            f"above the score without context, in per cent, with its {self.level} bootstrap "
            f"interval; suppressed where {base} is not separable from that floor. The last column "
            f"is macro {names[other]}; WinoGrande, which has no length-normalised accuracy, counts "
            "in both with its accuracy.",
            [wrapped(3.6), "r", "r", "r", "r", "r"],
            ["Stage", f"Macro {short[q.metric]}", self.ci, "Kept above chance",
             "Kept above no context", f"Macro {short[other]}"],
        )  # fmt: skip
        for cell in self._cells():
            one = self.numbers.between(stage1, cell) if cell != stage1 else None
            table.add(
                q.cell(cell), _or(q.accuracy(cell)), _range(q.level(cell)),
                self._kept(one, "chance"), self._kept(one, "no-context"),
                _or(q.accuracy(cell, metric=other)),
            )  # fmt: skip
        return table

    def _kept(self, one: Contrast | None, floor: str) -> str:
        if one is None:
            return ABSENT
        found = one.above_chance if floor == "chance" else one.above_floor
        if found is None:
            return ABSENT
        if found.value is None:
            return "suppressed"
        kind = "chance" if floor == "chance" else "no-context"
        value, low, high = (self.q.retention(one, kind, part) for part in ("value", "low", "high"))  # type: ignore[arg-type]
        return f"{value} ({low} to {high})" if low and high else f"{value} (no interval)"

    def per_task(self) -> Tabular:
        q = self.q
        table = Tabular(
            "per-task",
            "Paired differences by task, in points (second minus first). Broken: right in the "
            "first, wrong in the second; fixed: the other way. $p$: exact McNemar test, and after "
            "Holm's adjustment over the tasks of a contrast. A task is called higher or lower only "
            "if the adjusted $p$ allows it; ``no difference'' as in Table~\\ref{tab:contrasts}. "
            "Contrasts of runs without item records have no paired "
            "interval and are in Table~\\ref{tab:contrasts} only.",
            ["l", *"rrrrrrrrr", "l"],
            ["Task", "$n$", "First", "Second", "Difference", self.ci, "Broken", "Fixed", "$p$",
             "$p$ (Holm)", "Verdict"],
            long=True,
        )  # fmt: skip
        for one in self._paired():
            second, first = q.ends(one)
            table.heading(f"{second} minus {first}")
            for row in one.tasks:
                task = row.task
                table.add(
                    q.task(task), _or(q.items(one, task)), q.side(one, task, "a"),
                    q.side(one, task, "b"), _or(q.difference(one, task)),
                    _range(q.interval(one, task)), _or(q.flips(one, task, "broken")),
                    _or(q.flips(one, task, "fixed")), _slashed(q.p_values(one, task, "mcnemar")),
                    _slashed(q.p_values(one, task, "holm")), q.verdict(one, task),
                )  # fmt: skip
            table.add(
                "macro", _or(q.items(one)), q.side(one, MACRO, "a"), q.side(one, MACRO, "b"),
                _or(q.difference(one)), _range(q.interval(one)), "", "", "", "", q.verdict(one),
            )  # fmt: skip
        return table

    def _paired(self) -> list[Contrast]:
        return [one for one in self.numbers.contrasts(leaky=False) if one.basis == "paired"]

    def contrasts(self) -> Tabular:
        q = self.q
        power = q.constant("power", 0.8, "80 %")
        margin = q.constant("margin", q.margin, f"{100 * q.margin:g}")
        table = Tabular(
            "contrasts",
            "Differences in macro accuracy, in points (second minus first). A verdict is "
            f"``no difference'' only if the whole interval lies within {margin} point"
            f"{'' if q.margin == 0.01 else 's'} of zero, higher or lower if it leaves out zero, "
            "else undecided. Detectable: the smallest true difference that these items find with "
            f"{power} power.",
            [wrapped(4.4), *"rrrrrr", "l", "l"],
            ["Second minus first", "$n$", "First", "Second", "Difference", self.ci, "Detectable",
             "Interval", "Verdict"],
        )  # fmt: skip
        for one in self.numbers.contrasts(leaky=False):
            second, first = q.ends(one)
            table.add(
                f"{second} minus {first}", _or(q.items(one)), q.side(one, MACRO, "a"),
                q.side(one, MACRO, "b"), _or(q.difference(one)), _range(q.interval(one)),
                _or(q.detectable(one)), one.basis, q.verdict(one),
            )  # fmt: skip
        return table

    def two_by_two(self) -> Tabular:
        q = self.q
        table = Tabular(
            "two-by-two",
            "Every arm under its bidirectional regime and under causal attention: macro accuracy "
            f"with its {self.level} interval, and their difference in points. Differences marked "
            "\\emph{unpaired} are of runs without item records.",
            [wrapped(3.2), "l", "r", "r", "r"],
            ["Arm", "Regime", "Under the regime", "Causal", "Regime minus causal"],
        )
        arms = [arm for arm in self.study.arms if not arm.leaky]
        if len(arms) < 2:
            return table
        for arm in arms:
            for regime in self.study.bidirectional_regimes(arm):
                cell, causal = (arm, regime), (arm, CAUSAL)
                one = self.numbers.between(causal, cell)
                mark = r" \emph{unpaired}" if one and one.basis == "unpaired" else ""
                ends = q.interval(one) if one else None
                change = f"{q.difference(one)}{_range(ends, True)}{mark}" if one else ABSENT
                table.add(
                    q.arm(arm), q.regime(regime), self._level(cell), self._level(causal),
                    change,
                )  # fmt: skip
        return table

    def _level(self, cell: Cell) -> str:
        value = self.q.accuracy(cell)
        return f"{value}{_range(self.q.level(cell), True)}" if value else "not run"

    def interaction(self) -> Tabular:
        q = self.q
        table = Tabular(
            "interaction",
            "The interaction, (arm minus control under the regime) minus (the same under causal "
            "attention), in points: the part of the gain that ordinary tuning does not explain. "
            "The control of distillation is the base model. Intervals of single tasks are not "
            "adjusted for their number, so they carry no verdict.",
            [wrapped(3.2), wrapped(3.2), "l", "r", "r", "r", "l"],
            ["Arm", "Control", "Task", "$n$", "Interaction", self.ci, "Verdict"],
        )
        for arm in self.study.trained("3B", "distill"):
            found = q.interaction(arm)
            if isinstance(found, str):
                table.add(q.arm(arm), *[ABSENT] * 5, "not tested")
                continue
            for task in found.estimates:
                macro = task == MACRO
                ends = found.entry(task, "low"), found.entry(task, "high")
                table.add(
                    q.arm(arm) if macro else "",
                    q.arm(found.control) if macro else "",
                    "macro" if macro else q.task(task), found.items(task), found.entry(task),
                    _range(ends), found.verdict() if macro else "",
                )  # fmt: skip
        return table

    def training(self) -> Tabular:
        table = Tabular(
            "training",
            "How each arm was trained, as its run recorded it. Dropped: samples left out because "
            "they share text with an evaluation item. Tokens: without padding, over all steps.",
            [wrapped(2.6), *"lllrrrrrr"],
            ["Arm", "Method", "Regime", "Data", "Peak lr", "Steps", "Batch", "Samples", "Dropped",
             "Tokens"],
        )  # fmt: skip
        for arm, by_seed in self.study.finetunes.items():
            runs = list(by_seed.values())
            name = f"{self.q.arm(arm)} (leaky: no result)" if arm.leaky else self.q.arm(arm)
            table.add(
                name, self._said(arm, runs, "config.method", style="text"),
                self._said(arm, runs, "config.regime", style="code"),
                self._said(arm, runs, "config.data", style="code"),
                self._said(arm, runs, "config.lr", number=True),
                self._said(arm, runs, "config.steps", number=True),
                self._said(arm, runs, "config.batch_samples", number=True),
                self._said(arm, runs, "training_data.n_used", number=True),
                self._said(arm, runs, "training_data.n_dropped_contaminated", number=True),
                self._said(arm, runs, "tokens", file="metrics.json", number=True),
            )  # fmt: skip
        return table

    def _said(
        self, arm: Arm, runs: Sequence[Run], field: str, *, file: str = "config.json",
        number: bool = False, style: str = "number",
    ) -> str:  # fmt: skip
        show = shown_number if number else str
        key = f"{arm.title}/{field}"
        found = self.q.facts(key, runs, file, field, show, style=style)  # type: ignore[arg-type]
        return _slashed(found)

    def claims(self, claims: Sequence[Claim]) -> Tabular:
        table = Tabular(
            "claims",
            "The claims ledger: each claim, the number that it rests on (in points, with its "
            f"{self.level} interval) and its status, computed from the interval. Tests, folds, "
            "runs and what would falsify each claim are in \\texttt{claims.md}.",
            ["l", wrapped(8.6), "r", "l"],
            ["Claim", "Statement", f"Difference ({self.ci})", "Status"],
            long=True,
        )
        for claim in claims:
            name = self.q.ledger.add(
                f"claim/{claim.id}", claim.id, claim.id, claim.runs, style="text",
                statistic="name",
            )  # fmt: skip
            value = "not tested"
            if claim.interval:
                first, *ends = claim.interval
                value = f"{first}{_range(ends, True)}" if ends else f"{first} (no interval)"
            table.add(name, claim.statement.tex, value, claim.status)
        return table

    def runs(self) -> Tabular:
        table = Tabular(
            "runs",
            "The runs behind every number of this paper. \\texttt{numbers.json} leads from each "
            "printed number to its runs.",
            [wrapped(3.6), wrapped(8.6), "r", "l"],
            ["What", "Run", "Items", "Dtype"],
            long=True,
        )
        for what, _, run in labelled_runs(self.study):
            name = self.q.title(what, [run.id])
            entry = self.q.ledger.add(
                f"run/{run.id}", run.id, run.id, [run.id], style="code", statistic="name"
            )
            items = self.q.fact(f"run/{run.id}/items", [run], "metrics.json", "n_items",
                                shown_number)  # fmt: skip
            dtype = self.q.fact(f"run/{run.id}/dtype", [run], "config.json", "dtype", style="text")
            table.add(name, entry, _or(items), _or(dtype))
        return table

    def _n_items(self) -> str:
        runs = [run for by_seed in self.study.cells.values() for run in by_seed.values()]
        n = self.q.fact("n-items", runs, "metrics.json", "n_items", shown_number)
        return f" ($n = {n}$ items in each)" if n else ""


def shown_number(value: object) -> str:
    """A setting as a reader writes it: thousands separated, small ones in powers of ten."""
    if isinstance(value, int):
        return formatting.count(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _or(entry: Entry | None) -> str:
    return ABSENT if entry is None else str(entry)


def _range(ends: Sequence[Entry] | None, brackets: bool = False) -> str:
    if not ends:
        return "" if brackets else ABSENT
    text = f"{ends[0]} to {ends[1]}"
    return f" ({text})" if brackets else text


def _slashed(entries: Sequence[Entry]) -> str:
    return " / ".join(map(str, entries)) or ABSENT
