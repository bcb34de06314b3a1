"""The claims ledger: what is claimed, by which runs and test, what would refute it, its status.

A status is computed, never written: ``supported``, ``refuted`` or ``undecided``, from where the
95 % interval lies. A claim whose runs are missing is undecided, and says that it is untested.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from bidir_core.analyse import stats
from bidir_core.analyse.contrasts import Contrast, task_accuracy
from bidir_core.analyse.pairing import Metric
from bidir_core.analyse.phrases import size
from bidir_core.analyse.study import CAUSAL, Arm, Cell
from bidir_core.analyse.verdict import Verdict, judge
from bidir_core.report.paper_numbers import MACRO, SIGNIFICANCE, Entry, Quantities, Sentence
from bidir_core.runs.curve import read_curve
from bidir_core.runs.metrics import standard_error
from bidir_core.runs.run import Run

Status = Literal["supported", "undecided", "refuted"]
Wanted = Literal["lower", "higher", "not lower"]
_HOLDS: dict[Wanted, tuple[Verdict, ...]] = {
    "lower": ("worse",), "higher": ("better",), "not lower": ("equivalent", "better"),
}  # fmt: skip
_DOING = {"3B": ("Fine-tuning ", ""), "distill": ("Distillation (", ")")}
PAIRED = (
    "paired difference over the same items: Tango's score interval by task, combined over tasks "
    "by MOVER"
)
PAIRED_SEEDS = "paired difference over the same items, mean over seeds, normal interval"
UNPAIRED = "unpaired difference of accuracies, normal interval: wider than a paired one would be"
INTERACTION = "per-item interaction over the same items, mean over tasks, normal interval"
MCNEMAR = "exact McNemar test, Holm-adjusted over the tasks, and Tango's score interval"


@dataclass(frozen=True)
class Claim:
    """One line of the ledger. ``numbers`` are the entries that it rests on."""

    id: str
    statement: Sentence
    quantity: str
    test: str
    falsifier: str
    status: Status
    reason: str
    runs: tuple[str, ...]
    numbers: tuple[Entry, ...]
    interval: tuple[Entry, ...]
    cautions: tuple[str, ...]

    def to_json(self, fold: str, items: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "claim": self.statement.plain,
            "quantity": self.quantity,
            "status": self.status,
            "reason": self.reason,
            "test": self.test,
            "fold": fold,
            "items": items,
            "would_be_falsified_by": self.falsifier,
            "runs": list(self.runs),
            "numbers": {e.key: e.text for e in self.numbers if e.style == "number"},
            "cautions": list(self.cautions),
        }


def status_of(interval: stats.Estimate | None, wanted: Wanted, margin: float) -> Status:
    """Whether an interval bears out a direction; one within the margin counts as no difference."""
    found = judge(interval, margin=margin).verdict
    if found == "undecided":
        return "undecided"
    return "supported" if found in _HOLDS[wanted] else "refuted"


def make_claims(quantities: Quantities) -> list[Claim]:
    """Every claim that the study's runs speak to, numbered in reading order."""
    return list(_Claims(quantities).all())


class _Claims:
    def __init__(self, quantities: Quantities):
        self.q, self.study = quantities, quantities.study
        self.margin = quantities.margin
        self.by_id = {run.id: run for run in self.study.all_runs}
        self.count = 0

    def all(self) -> Iterator[Claim]:
        study = self.study
        base = (study.base, CAUSAL)
        for regime in study.bidirectional_regimes(study.base):
            yield from self._damage(base, (study.base, regime))
            if regime != study.regime:
                yield from self._if_run(
                    (study.base, study.regime), (study.base, regime), "higher",
                    "Without training, ", self.q.regime(regime), f" prefill keeps more macro "
                    f"{self._metric} than ", self.q.regime(study.regime), " prefill.",
                )  # fmt: skip
        for arm in study.trained("3B", "distill"):
            yield from self._repair(arm)

    def _damage(self, stage1: Cell, stage2: Cell) -> Iterator[Claim]:
        one = self.q.numbers.between(stage1, stage2)
        if one is None:
            return
        regime = self.q.regime(stage2[1])
        words = ("Without training, ", regime, " prefill lowers ")
        yield self._of(one, (*words, f"macro {self._metric}."), "lower")
        if one.basis != "paired":
            return
        for row in one.tasks:
            task = self.q.task(row.task)
            yield self._of(one, (*words, f"{self._metric} on ", task, "."), "lower", row.task)

    def _repair(self, arm: Arm) -> Iterator[Claim]:
        study, q = self.study, self.q
        own, name = study.own_regime(arm), self.q.arm(arm)
        regime = q.regime(own)
        stage1, stage2 = (study.base, CAUSAL), (study.base, own)
        control = study.control_of(arm) if arm.code == "3B" else None
        metric = f"macro {self._metric}"
        doing, after = _DOING[arm.code]
        if study.runs(arm, own):
            yield from self._if_run(
                stage2, (arm, own), "higher",
                doing, name, after, f" raises {metric} under ", regime, " prefill.",
            )  # fmt: skip
            yield from self._if_run(
                stage1, (arm, own), "not lower",
                name, " under ", regime, f" prefill reaches the {metric} of the base model under "
                "causal attention.",
            )  # fmt: skip
            yield self._interaction(arm, name, regime)
            if control is not None:
                yield from self._if_run(
                    (control, CAUSAL), (arm, own), "not lower",
                    "At equal training, ", regime, f" prefill costs no {metric}: ", name,
                    " under it against ", q.arm(control), " under causal attention.",
                )  # fmt: skip
        if study.runs(arm, CAUSAL):
            yield from self._if_run(
                stage1, (arm, CAUSAL), "not lower",
                doing, name, after, f" costs no {metric} under causal attention.",
            )  # fmt: skip
            if control is not None:
                yield from self._if_run(
                    (control, CAUSAL), (arm, CAUSAL), "not lower",
                    "Training ", name, " under the mask, instead of ", q.arm(control),
                    f", costs no {metric} under causal attention.",
                )  # fmt: skip

    @property
    def _metric(self) -> str:
        return "accuracy" if self.q.metric == "acc" else "length-normalised accuracy"

    def _if_run(self, a: Cell, b: Cell, wanted: Wanted, *parts: str | Entry) -> Iterator[Claim]:
        one = self.q.numbers.between(a, b)
        if one is not None:
            yield self._of(one, parts, wanted)

    def _of(
        self, one: Contrast, parts: Iterable[str | Entry], wanted: Wanted, task: str = MACRO
    ) -> Claim:
        """A claim about the direction of a contrast, or of one task of it."""
        q = self.q
        numbers: list[Entry | None] = [
            q.side(one, task, "a"), q.side(one, task, "b"), q.difference(one, task),
            *(q.interval(one, task) or ()), q.items(one, task),
        ]  # fmt: skip
        row = next((row for row in one.tasks if row.task == task), None)
        interval, test = one.interval, PAIRED if one.n_seeds < 2 else PAIRED_SEEDS
        if one.basis != "paired":
            test = UNPAIRED if one.basis == "unpaired" else "none: too few numbers are known"
        p_holm: tuple[float, ...] = ()
        if row is not None and task != MACRO:
            interval, p_holm, test = row.interval, row.p_holm, MCNEMAR
            numbers += [
                *q.p_values(one, task, "mcnemar"), *q.p_values(one, task, "holm")
            ]  # fmt: skip
        status = status_of(interval, wanted, self.margin)
        if status != "undecided" and judge(interval, margin=self.margin).decided:
            # One of several tasks: its own interval promises too much.
            status = "undecided" if any(p >= SIGNIFICANCE for p in p_holm) else status
        ends = q.ends(one)
        where = "" if task == MACRO else f", {task}"
        return self._claim(
            Sentence(*parts),
            f"{one.b} minus {one.a}{where}",
            test,
            wanted,
            status,
            "" if interval is not None else "no interval can be computed from what the runs hold",
            [run for pair in one.runs for run in pair],
            [*(n for n in numbers if n is not None), *ends],
            [n for n in (q.difference(one, task), *(q.interval(one, task) or ())) if n],
            self._cautions(one, task),
        )

    def _interaction(self, arm: Arm, name: Entry, regime: Entry) -> Claim:
        """The only claim of repair: what the mask's own training adds beyond ordinary tuning."""
        parts = (
            "Part of what ", name, " gains over the base model under ", regime,
            " prefill is repair of the mask, not ordinary tuning.",
        )  # fmt: skip
        found = self.q.interaction(arm)
        cells = [self.study.runs(arm, regime.text), self.study.runs(arm, CAUSAL)]
        if isinstance(found, str):
            runs = [run.id for by_seed in cells for run in by_seed.values()]
            return self._claim(
                Sentence(*parts), "interaction with the control", INTERACTION, "higher",
                "undecided", f"not tested: {found}", runs, [name, regime], [], (),
            )  # fmt: skip
        estimate = found.estimates[MACRO]
        entries = [found.entry(MACRO, part) for part in ("value", "low", "high")]
        control = self.q.arm(found.control)
        quantity = (
            f"({arm.title} minus {found.control.title} under {regime.text}) - (the same under "
            "causal)"
        )
        return self._claim(
            Sentence(*parts), quantity, INTERACTION, "higher",
            status_of(estimate, "higher", self.margin), "",
            [run for one in found.lists for run in one],
            [*entries, found.items(), control], entries,
            [*self._seed_caution(len(found.lists[0])), *self._curve_caution()],
        )  # fmt: skip

    def _claim(
        self,
        statement: Sentence,
        quantity: str,
        test: str,
        wanted: Wanted,
        status: Status,
        reason: str,
        runs: Iterable[str],
        numbers: Iterable[Entry],
        interval: Iterable[Entry],
        cautions: Iterable[str],
    ) -> Claim:
        self.count += 1
        return Claim(
            f"C{self.count}", statement, quantity, test, _falsifier(wanted, self.margin), status,
            reason, tuple(dict.fromkeys(runs)),
            tuple({e.key: e for e in [*statement.entries, *numbers]}.values()),
            tuple(interval), (*self._fold_caution(), *dict.fromkeys(cautions)),
        )  # fmt: skip

    # --- cautions ---------------------------------------------------------------------------

    def _cautions(self, one: Contrast, task: str) -> list[str]:
        found = list(one.notes)
        pair = [self.by_id[run] for run in one.runs[0]]
        if any(run.settings.get("checkpoint") is not None for run in pair):
            found += self._seed_caution(one.n_seeds) + self._curve_caution()
        if task != MACRO and not above_chance(pair[0], task, self.q.metric):
            found.append(
                "the first run is not separable from chance on this task, so there is little that "
                "could be lost"
            )
        return found

    def _curve_caution(self) -> list[str]:
        """The quick evaluations look at the explore fold; a claim on all items includes it."""
        fold = self.study.some_run.settings.get("fold")
        runs = [run for by_seed in self.study.finetunes.values() for run in by_seed.values()]
        if fold == "all" and any("evals" in line for run in runs for line in read_curve(run.path)):
            return [
                "all items: among them the explore fold, on which training was watched; the "
                "confirm fold would be free of that"
            ]
        return []

    def _seed_caution(self, n_seeds: int) -> list[str]:
        if n_seeds > 1:
            return []
        return ["one training run an arm: the interval knows nothing of the spread over seeds"]

    def _fold_caution(self) -> list[str]:
        fold = self.study.some_run.settings.get("fold")
        if fold == "explore":
            return ["explore fold: for choosing recipes; a claim needs the confirm fold"]
        return []


def above_chance(run: Run, task: str, metric: Metric) -> bool:
    """Whether the task's accuracy leaves chance outside its normal 95 % interval."""
    row = ((run.metrics or {}).get("tasks") or {}).get(task) or {}
    accuracy, chance, n = task_accuracy(run, task, metric), row.get("chance"), row.get("n")
    if accuracy is None or chance is None or not n or n < 2:
        return True  # nothing speaks against it
    error = standard_error(accuracy, n) or 0.0
    return abs(accuracy - chance) > stats.Z_95 * error


def _falsifier(wanted: Wanted, margin: float) -> str:
    within = f"wholly within {size(margin)} of 0"
    return {
        "lower": f"an interval wholly above 0, or {within} (then there is no difference to speak of)",
        "higher": f"an interval wholly below 0, or {within} (then there is no difference to speak "
        "of)",
        "not lower": f"an interval wholly below 0 that is not {within}; the claim needs one wholly "
        f"above 0 or {within}",
    }[wanted]
