"""The differences a report speaks of: one cell against another, paired wherever items allow."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from bidir_core.analyse import stats
from bidir_core.analyse.compare import Comparison, compare, right_by_task
from bidir_core.analyse.pairing import Metric
from bidir_core.analyse.stats import Retention, retention, why_not_above
from bidir_core.analyse.study import CAUSAL, Arm, Cell, Study
from bidir_core.analyse.verdict import Judgement, Verdict, judge, phrase
from bidir_core.common.errors import UserError
from bidir_core.common.formatting import task_title
from bidir_core.runs.layout import TRAININGS
from bidir_core.runs.run import Run, row_accuracy


def contrast(
    study: Study, a: Cell, b: Cell, *, metric: Metric = "acc", margin: float = stats.MARGIN
) -> Contrast | None:
    """Cell ``b`` minus cell ``a``; None if either was not run, or they share no seed.

    Trained arms pair seed by seed, over the seeds that both have; the untrained base model pairs
    with each. Where only some seeds kept their items, those alone are compared: an interval beats a
    mean over more seeds without one.
    """
    pairs, notes = _pairs_of_runs(study, a, b)
    kept = [pair for pair in pairs if all(run.has_items for run in pair)]
    if kept and len(kept) < len(pairs):
        notes.append(items_of(len(kept), len(pairs)))
        pairs = kept
    if not pairs or any(macro_of(run, metric) is None for pair in pairs for run in pair):
        return None
    acc_a, acc_b = (mean([macro_of(pair[side], metric) for pair in pairs]) for side in (0, 1))
    draft = Contrast(
        a=cell_title(study, a),
        b=cell_title(study, b),
        acc_a=acc_a,
        acc_b=acc_b,
        value=acc_b - acc_a,
        margin=margin,
        leaky=a[0].leaky or b[0].leaky,
        runs=tuple((run_a.id, run_b.id) for run_a, run_b in pairs),
    )
    if not any(run.is_reference for pair in pairs for run in pair):
        try:
            return _paired(draft, pairs, study.floor, metric, notes)
        except UserError as error:
            notes.append(str(error))
    return _unpaired(draft, pairs, metric, notes)


@dataclass(frozen=True)
class Interaction:
    """(arm - control under the arm's regime) - (arm - control under causal).

    ``runs``: ids by seed, of arm and control under the regime, then both causal. ``note``: that not
    all seeds have their items, if so.
    """

    effect: stats.Effect
    control: Arm
    runs: tuple[tuple[str, ...], ...]
    note: str


def interaction(study: Study, arm: Arm, *, metric: Metric = "acc") -> Interaction | str:
    """The arm's interaction with its control; a sentence, instead, that says what is missing.

    The control of 3B is 3C; that of distillation is the base model, which it was taught to equal.
    """
    control = study.base if arm.code == "distill" else study.control_of(arm)
    if control is None:
        return "there is no causal control (3C) of the same recipe"
    regimes = study.own_regime(arm), CAUSAL
    cells = [(compared, regime) for regime in regimes for compared in (arm, control)]
    for cell in cells:
        if not study.runs(*cell):
            return f"not run: {cell_title(study, cell)}"
    trained = [study.runs(*cell) for cell in cells if cell[0] != study.base]
    shared = set.intersection(*(set(by_seed) for by_seed in trained))
    if not shared:
        return "the arms share no training seed"
    kept = {seed for seed in shared if all(by_seed[seed].has_items for by_seed in trained)}
    seeds = sorted(kept or shared)

    def run_of_each_seed(cell: Cell) -> list[Run]:
        runs = study.runs(*cell)
        if cell[0] == study.base:
            return [next(iter(runs.values()))] * len(seeds)
        return [runs[seed] for seed in seeds]

    runs_by_cell = [run_of_each_seed(cell) for cell in cells]
    try:
        right = right_by_task([run for runs in runs_by_cell for run in runs], metric)
    except UserError as error:
        return str(error)
    # [cell, seed, item] by task: the cells are arm and control under the regime, then both causal.
    cubes = {task: rows.reshape(4, len(seeds), -1).astype(float) for task, rows in right.items()}
    effect = stats.stratified_mean(
        {task: cube[0] - cube[1] - (cube[2] - cube[3]) for task, cube in cubes.items()}
    )
    ids = tuple(tuple(run.id for run in runs) for runs in runs_by_cell)
    note = items_of(len(seeds), len(shared)) if len(seeds) < len(shared) else ""
    return Interaction(effect, control, ids, note)


def cell_title(study: Study, cell: Cell) -> str:
    """``stage 1``, ``stage 2 (sink=1)``, ``stage 4 (3B)``, ``3C, causal`` ..."""
    arm, regime = cell
    dials = regime.removeprefix("bidirectional").removeprefix(":")
    if arm == study.base:
        return "stage 1" if regime == CAUSAL else "stage 2" + (f" ({dials})" if dials else "")
    if arm.code == "3C" or regime == CAUSAL:
        return f"{arm.title}, {regime}"
    return f"stage 4 from {arm.title}" + (f", {regime}" if dials else "")


_TRAINED = re.compile(
    r"\b(stage 4 from |fine-tune )?(3A|3B|3C|distil)\b(?: \((?:leaky)?([^)]*)\))?"
)


def in_words(name: str) -> str:
    """A task, an arm or a cell as people call it: ``ARC-Easy``, ``repair fine-tune (3B)``."""

    def trained(found: re.Match[str]) -> str:
        told, code, variant = found.groups()
        training = "training of the " if told == "fine-tune " else ""
        code, plain = CODES_IN_WORDS[code]
        more = ", ".join(filter(None, (code, variant)))
        return f"{training}{plain}" + (f" ({more})" if more else "")

    return _TRAINED.sub(trained, task_title(name))


CODES_IN_WORDS = {code: (code, TRAININGS[code].plain) for code in ("3A", "3B", "3C")} | {
    "distil": ("", TRAININGS["distill"].plain)
}


def _pairs_of_runs(study: Study, a: Cell, b: Cell) -> tuple[list[tuple[Run, Run]], list[str]]:
    first, second = study.runs(*a), study.runs(*b)
    if not first or not second:
        return [], []
    if a[0] == study.base:
        return [(next(iter(first.values())), run) for run in second.values()], []
    if b[0] == study.base:
        return [(run, next(iter(second.values()))) for run in first.values()], []
    seeds = sorted(set(first) & set(second))
    notes = []
    if set(first) != set(second):
        notes = [f"only the seeds that both arms have: {', '.join(map(str, seeds))}"]
    return [(first[seed], second[seed]) for seed in seeds], notes


def items_of(kept: int, total: int) -> str:
    """Says that not all seeds have their items."""
    return f"from {kept} of {total} seeds: the others have no items here, only metrics"


def _paired(
    draft: Contrast,
    pairs: Sequence[tuple[Run, Run]],
    floor: Run | None,
    metric: Metric,
    notes: list[str],
) -> Contrast:
    results = [_compare(*pair, floor, metric, draft.margin) for pair in pairs]
    if len(results) == 1:
        macro = results[0].macro
        estimate, detectable = macro.estimate, macro.detectable
        by_task = {row.task: row.estimate for row in results[0].tasks}
    else:
        right = right_by_task([run for side in zip(*pairs) for run in side], metric)
        n = len(pairs)
        over_seeds = stats.stratified_mean(
            {task: rows[n:].astype(float) - rows[:n] for task, rows in right.items()}
        )
        estimate, detectable, by_task = over_seeds.estimate, None, over_seeds.per_task
    tasks = []
    for rows in zip(*(result.tasks for result in results)):
        name = rows[0].task
        judgement = judge(
            by_task[name],
            margin=draft.margin,
            n_seeds=len(rows),
            broken=mean([row.broken for row in rows]),
            fixed=mean([row.fixed for row in rows]),
            p_values=[row.p_value for row in rows if row.p_value is not None],
            p_adjusted=[row.p_holm for row in rows if row.p_holm is not None],
        )
        tasks.append(
            TaskDelta(
                task=name,
                n=rows[0].n,
                acc_a=mean([row.acc_a for row in rows]),
                acc_b=mean([row.acc_b for row in rows]),
                delta=by_task[name].value,
                judgement=judgement,
                changed_wrong=mean([row.changed_wrong for row in rows]),
            )
        )
    all_notes = [*notes, *dict.fromkeys(note for result in results for note in result.notes)]
    # acc_a and acc_b stay the runs' own: an error item counts as wrong there and is in no pair.
    return replace(
        draft,
        value=estimate.value,
        interval=estimate,
        basis="paired",
        tasks=tuple(tasks),
        per_seed=tuple(result.macro.delta for result in results),
        above_chance=mean_retention([result.above_chance for result in results]),
        above_floor=mean_retention([result.above_no_context for result in results]),
        detectable=detectable,
        notes=tuple(all_notes),
    )


def _compare(
    first: Run, second: Run, floor: Run | None, metric: Metric, margin: float
) -> Comparison:
    try:
        return compare(first, second, metric=metric, margin=margin, floor=floor)
    except UserError:
        if floor is None:
            raise
        return compare(first, second, metric=metric, margin=margin)  # the floor does not pair


# One difference that a report speaks of, and what can be said about it.

Basis = Literal["paired", "unpaired", "none"]

BASES = {
    "paired": "paired item by item",
    "unpaired": "unpaired, from printed accuracies and n",
    "none": "no interval: too little is known of the runs",
}


@dataclass(frozen=True)
class TaskDelta:
    """One task of a contrast. Counts are means over seeds; p values stand one for each seed."""

    task: str
    n: int | None
    acc_a: float
    acc_b: float
    delta: float
    judgement: Judgement
    changed_wrong: float | None = None

    @property
    def interval(self) -> stats.Estimate | None:
        return self.judgement.estimate


@dataclass(frozen=True)
class Contrast:
    """``b`` minus ``a``, macro, with what can be said about it.

    ``value`` is from the runs' own macro accuracies where nothing pairs. ``per_seed`` holds one
    value for each pair of ``runs`` (ids, of a and of b). ``basis`` says where the interval comes
    from.
    """

    a: str
    b: str
    acc_a: float
    acc_b: float
    value: float
    interval: stats.Estimate | None = None
    basis: Basis = "none"
    tasks: tuple[TaskDelta, ...] = ()
    per_seed: tuple[float, ...] = ()
    above_chance: Retention | None = None
    above_floor: Retention | None = None
    detectable: float | None = None
    margin: float = stats.MARGIN
    leaky: bool = False
    notes: tuple[str, ...] = field(default=())
    runs: tuple[tuple[str, str], ...] = ()

    @property
    def title(self) -> str:
        return f"{self.b} minus {self.a}"

    @property
    def ratio(self) -> float | None:
        return self.acc_b / self.acc_a if self.acc_a > 0 else None

    @property
    def n(self) -> int | None:
        return self.interval.n if self.interval is not None else None

    @property
    def n_seeds(self) -> int:
        return len(self.per_seed)

    @property
    def judgement(self) -> Judgement:
        """Of one task alone it is the task's, by its exact test; the mean of several has none."""
        if len(self.tasks) == 1 and self.basis == "paired":
            return self.tasks[0].judgement
        return judge(self.interval, margin=self.margin, n_seeds=self.n_seeds)

    @property
    def verdict(self) -> Verdict:
        return self.judgement.verdict

    @property
    def words(self) -> str:
        """A table cell's words for the verdict."""
        return phrase(self.judgement)


def mean_retention(retentions: Sequence[Retention | None]) -> Retention | None:
    """Over seeds: the mean, and an interval that holds every seed's own."""
    known = [share for share in retentions if share is not None]
    if len(known) != len(retentions) or not known:
        return None
    if len(known) == 1:
        return known[0]
    hidden = [share for share in known if share.value is None]
    if hidden:
        return hidden[0]
    return Retention(
        value=mean([share.value for share in known]),
        low=min(share.low for share in known if share.low is not None),
        high=max(share.high for share in known if share.high is not None),
        n=known[0].n,
    )


def mean(values: Sequence[Any]) -> float:
    return math.fsum(values) / len(values)


# What printed accuracies alone can say: levels, and differences of runs that do not pair.


@dataclass(frozen=True)
class Level:
    """A cell's accuracy: the mean over its seeds, with an interval over items and seeds."""

    value: float
    interval: stats.Estimate | None
    per_seed: tuple[float, ...]
    n: int | None

    @property
    def spread(self) -> tuple[float, float] | None:
        """Lowest and highest seed, or None for a single one."""
        return (min(self.per_seed), max(self.per_seed)) if len(self.per_seed) > 1 else None


def level(runs: Mapping[int, Run], metric: Metric) -> Level | None:
    """The macro accuracy of a cell, or None if there is no run or no such number.

    The interval combines the tasks' own (:func:`stats.accuracy`) and adds the seeds' spread.
    """
    known = [run for run in runs.values() if macro_of(run, metric) is not None]
    if not known:
        return None
    values = [float(macro_of(run, metric) or 0.0) for run in known]
    n = (known[0].metrics or {}).get("n_items")
    estimate = _over_runs(mean(values), [_macro_estimate(run, metric) for run in known], values)
    interval = estimate and stats.Estimate(
        estimate.value, max(0.0, estimate.low), min(1.0, estimate.high), n or 0
    )
    return Level(mean(values), interval, tuple(values), n)


def _over_runs(
    value: float, estimates: Sequence[stats.Estimate | None], per_seed: Sequence[float]
) -> stats.Estimate | None:
    """The mean's interval over items and seeds. An item counts once, however many seeds answered
    it; None where a run has no interval."""
    known = [estimate for estimate in estimates if estimate is not None]
    if len(known) < len(estimates):
        return None
    down = math.sqrt(mean([(estimate.value - estimate.low) ** 2 for estimate in known]))
    up = math.sqrt(mean([(estimate.high - estimate.value) ** 2 for estimate in known]))
    return stats.over_seeds(stats.Estimate(value, value - down, value + up, known[0].n), per_seed)


def task_accuracy(run: Run, task: str, metric: Metric) -> float | None:
    """One task's accuracy; acc where the task has no acc_norm, as the macro does."""
    return row_accuracy((run.metrics or {}).get("tasks", {}).get(task) or {}, metric)


def _unpaired(
    draft: Contrast, pairs: Sequence[tuple[Run, Run]], metric: Metric, notes: list[str]
) -> Contrast:
    """From metrics alone. Items are shared, so this interval is wider than a paired one would be."""
    first, second = pairs[0]
    per_seed = [(macro_of(b, metric) or 0.0) - (macro_of(a, metric) or 0.0) for a, b in pairs]
    interval = _over_runs(
        draft.value, [_macro_difference(*pair, metric) for pair in pairs], per_seed
    )
    if interval is not None:
        interval = replace(interval, n=(first.metrics or {}).get("n_items") or 0)
    rows_a = (first.metrics or {}).get("tasks") or {}
    rows_b = (second.metrics or {}).get("tasks") or {}
    tasks = []
    for task in (name for name in rows_a if name in rows_b):
        acc_a = mean([task_accuracy(run_a, task, metric) for run_a, _ in pairs])
        acc_b = mean([task_accuracy(run_b, task, metric) for _, run_b in pairs])
        tasks.append(
            TaskDelta(task, rows_a[task].get("n"), acc_a, acc_b, acc_b - acc_a, judge(None))
        )
    return replace(
        draft,
        interval=interval,
        basis="unpaired" if interval is not None else "none",
        tasks=tuple(tasks),
        per_seed=tuple(per_seed),
        above_chance=_printed_retention(first, draft, metric),
        notes=tuple(notes),
    )


def _printed_retention(first: Run, draft: Contrast, metric: Metric) -> Retention | None:
    """Above-chance retention from printed accuracies: no interval, but the same suppression.

    The accuracies are means over seeds; ``first``, of the baseline, knows chance and n.
    """
    chance = ((first.metrics or {}).get("macro") or {}).get("chance")
    baseline = _macro_estimate(first, metric)
    if chance is None or baseline is None:
        return None
    n = (first.metrics or {}).get("n_items") or 0
    above = draft.acc_a - chance
    down, up = baseline.value - baseline.low, baseline.high - baseline.value
    why = why_not_above(stats.Estimate(above, above - down, above + up, n))
    value = retention(draft.acc_b, draft.acc_a, chance) if why is None else None
    return Retention(value, None, None, n, why)


def macro_of(run: Run, metric: Metric) -> float | None:
    return ((run.metrics or {}).get("macro") or {}).get(metric)


def _task_estimates(run: Run, metric: Metric) -> dict[str, stats.Estimate] | None:
    """Each task's accuracy with its interval; None where a task lacks accuracy or n."""
    estimates = {}
    for name, row in ((run.metrics or {}).get("tasks") or {}).items():
        acc, n = task_accuracy(run, name, metric), row.get("n")
        if acc is None or not n:
            return None
        estimates[name] = stats.accuracy(acc, n)
    return estimates or None


def _macro_estimate(run: Run, metric: Metric) -> stats.Estimate | None:
    tasks = _task_estimates(run, metric)
    return stats.macro_delta(list(tasks.values())) if tasks else None


def _macro_difference(first: Run, second: Run, metric: Metric) -> stats.Estimate | None:
    a, b = _task_estimates(first, metric), _task_estimates(second, metric)
    if a is None or b is None or set(a) != set(b):
        return None
    return stats.macro_delta([stats.unpaired_delta(a[task], b[task]) for task in a])
