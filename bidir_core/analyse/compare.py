"""Two runs on the same items: how much accuracy changed, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from bidir_core.analyse import stats
from bidir_core.analyse.pairing import Metric, PairedItems, pair, repeats, unchecked_notes
from bidir_core.analyse.stats import Retention, above_floor_retention
from bidir_core.analyse.verdict import (
    JSON_WORDS,
    Judgement,
    Verdict,
    ends_text,
    interval_text,
    judge,
    phrase,
    retention_text,
    sentence,
)
from bidir_core.common.errors import UserError
from bidir_core.common.formatting import count, p_text, points, table
from bidir_core.data.items import has_orders
from bidir_core.regimes import parse_regime
from bidir_core.runs.run import Run

if TYPE_CHECKING:
    from bidir_core.analyse.order_effects import OrderArm

MACRO = "macro"


@dataclass(frozen=True)
class Row:
    """One task, or ``macro``. Accuracies and differences are fractions; b minus a.

    ``low``/``high``: the 95 % interval of ``delta``. ``p_value``: exact McNemar; ``p_holm``: after
    Holm over the tasks (both None for a macro of several tasks). ``detectable``: the smallest true
    difference found with 80 % power. Counts of the macro are sums.
    """

    task: str
    n: int
    chance: float
    acc_a: float
    acc_b: float
    delta: float
    low: float
    high: float
    both_right: int
    broken: int
    fixed: int
    both_wrong: int
    changed_wrong: int
    p_value: float | None
    p_holm: float | None
    detectable: float | None
    judgement: Judgement

    @property
    def verdict(self) -> Verdict:
        return self.judgement.verdict

    @property
    def words(self) -> str:
        """A table cell's words for the verdict."""
        return phrase(self.judgement)

    @property
    def churn(self) -> int:
        return self.broken + self.fixed

    @property
    def estimate(self) -> stats.Estimate:
        return stats.Estimate(self.delta, self.low, self.high, self.n)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        value = asdict(self)
        del value["judgement"]
        return value | {
            "churn": self.churn,
            "verdict": JSON_WORDS[self.verdict],
            "judgement": self.verdict,
            "words": self.words,
        }


@dataclass(frozen=True)
class Comparison:
    """What can be said about run b against run a."""

    run_a: str
    run_b: str
    metric: Metric
    margin: float
    tasks: tuple[Row, ...]
    macro: Row
    sentence: str
    plain_ratio: float | None
    above_chance: Retention
    above_no_context: Retention | None
    n_errors: int
    n_unpaired: int
    intersected: bool
    notes: tuple[str, ...]
    orders: Mapping[str, Sequence[OrderArm]] = field(default_factory=dict)  # by order family
    information: Information | None = None  # accuracy by mutual information, given such a floor

    @property
    def rows(self) -> tuple[Row, ...]:
        """The tasks, then the macro."""
        return (*self.tasks, self.macro)

    @property
    def verdict(self) -> Verdict:
        return self.macro.verdict

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; churn included."""
        return {
            **asdict(self),
            "tasks": [row.to_json() for row in self.tasks],
            "macro": self.macro.to_json(),
            "notes": list(self.notes),
            "verdict": JSON_WORDS[self.verdict],
            "judgement": self.verdict,
        }


def compare(
    run_a: Run,
    run_b: Run,
    *,
    metric: str = "acc",
    intersect: bool = False,
    floor: Run | None = None,
    margin: float = stats.MARGIN,
) -> Comparison:
    """Compare run b with run a, paired item by item.

    ``floor``: a no-context (or shuffled-context) run, for the retention above it and, of the same
    model, for accuracy by mutual information. ``margin``: how
    small a difference counts as none. Raises UserError for runs that do not pair.
    """
    pairs = pair(run_a, run_b, metric, intersect=intersect)
    rows = _task_rows(pairs, margin)
    macro = _macro_row(rows, margin)
    right_a, right_b = pairs.by_task(pairs.correct_a), pairs.by_task(pairs.correct_b)
    above_no_context = None
    if floor is not None:
        above_no_context = retention_above_run(pairs, floor)
    orders: Mapping[str, Sequence[OrderArm]] = {}
    if has_orders(pairs.tasks):
        from bidir_core.analyse.order_effects import order_arms

        orders = order_arms(run_a, [run_b], metric=metric)
    return Comparison(
        run_a=run_a.id,
        run_b=run_b.id,
        metric=pairs.metric,
        margin=margin,
        tasks=tuple(rows),
        macro=macro,
        sentence=sentence(
            subject(run_a, run_b), macro.judgement, tasks=pairs.tasks, metric=pairs.metric
        ),
        plain_ratio=macro.acc_b / macro.acc_a if macro.acc_a > 0 else None,
        above_chance=above_floor_retention(right_a, right_b, pairs.chance()),
        above_no_context=above_no_context,
        n_errors=pairs.n_errors,
        n_unpaired=pairs.n_unpaired,
        intersected=pairs.intersected,
        notes=tuple(notes_of(pairs)),
        orders=orders,
        information=None if floor is None else by_information(pairs, floor),
    )


def macro_judgement(
    run_a: Run, run_b: Run, *, metric: Metric = "acc", margin: float = stats.MARGIN
) -> Judgement:
    """The verdict of :func:`compare` alone, without the shares, whose bootstrap takes most of its time."""
    return _macro_row(_task_rows(pair(run_a, run_b, metric), margin), margin).judgement


def _task_rows(pairs: PairedItems, margin: float) -> list[Row]:
    flip = pairs.by_task(pairs.flip)
    right_a, right_b = pairs.by_task(pairs.correct_a), pairs.by_task(pairs.correct_b)
    chance = pairs.chance()
    tables = {task: stats.table_2x2(right_a[task], right_b[task]) for task in right_a}
    p_values = [stats.mcnemar_exact(t.broken, t.fixed) for t in tables.values()]
    rows = []
    for (task, counts), p, p_holm in zip(tables.items(), p_values, stats.holm(p_values)):
        estimate = stats.paired_interval(counts)
        facts = {
            "chance": chance[task],
            "acc_a": float(right_a[task].mean()),
            "acc_b": float(right_b[task].mean()),
            "changed_wrong": int((flip[task] == "changed_wrong").sum()),
            "detectable": stats.smallest_detectable(counts.n, stats.smoothed_discordance(counts)),
        }
        rows.append(_row(task, estimate, vars(counts) | facts, margin, p, p_holm))
    return rows


def _macro_row(rows: Sequence[Row], margin: float) -> Row:
    if len(rows) == 1:
        return replace(rows[0], task=MACRO)  # one task: what its own test says
    tables = [stats.Table2x2(r.both_right, r.broken, r.fixed, r.both_wrong) for r in rows]
    means, sums = ("chance", "acc_a", "acc_b"), (*vars(tables[0]), "changed_wrong")
    facts: dict[str, Any] = {
        name: float(np.mean([getattr(r, name) for r in rows])) for name in means
    }
    facts |= {name: sum(getattr(row, name) for row in rows) for name in sums}
    facts["detectable"] = stats.smallest_detectable_macro(tables)
    return _row(MACRO, stats.macro_delta([row.estimate for row in rows]), facts, margin)


def _row(
    task: str,
    estimate: stats.Estimate,
    facts: Mapping[str, Any],
    margin: float,
    p: float | None = None,
    p_holm: float | None = None,
) -> Row:
    """``facts``: counts, accuracies and what is detectable, by the row's own names."""
    judgement = judge(
        estimate,
        margin=margin,
        broken=facts["broken"],
        fixed=facts["fixed"],
        p_values=[] if p is None else [p],
        p_adjusted=[] if p_holm is None else [p_holm],
    )
    return Row(
        task,
        estimate.n,
        delta=estimate.value,
        low=estimate.low,
        high=estimate.high,
        p_value=p,
        p_holm=p_holm,
        judgement=judgement,
        **facts,
    )


def retention_above_run(pairs: PairedItems, floor: Run) -> Retention:
    """Retention above another run's score on the very items of this pair."""
    third = pair(pairs.run_a, floor, pairs.metric, intersect=True, check_context=False)
    score = dict(zip(zip(third.task, third.doc_id), third.correct_b))
    keys = list(zip(pairs.task, pairs.doc_id))
    known = np.array([key in score for key in keys])
    if not known.any() or set(pairs.task[known]) != set(pairs.tasks):
        raise UserError(f"the floor run '{floor.id}' lacks a task of this comparison")
    right = np.array([score.get(key, False) for key in keys])

    def split(values: np.ndarray) -> dict[str, np.ndarray]:
        return {task: values[known & (pairs.task == task)] for task in pairs.tasks}

    return above_floor_retention(split(pairs.correct_a), split(pairs.correct_b), split(right))


def right_by_task(runs: Sequence[Run], metric: Metric = "acc") -> dict[str, np.ndarray]:
    """By task who was right, bool ``[n_runs, n_items]``, over the items that all could score.

    UserError for a run that does not pair with the first, and where no item is common.
    """
    pairs = [pair(runs[0], run, metric) for run in runs]
    common = reduce(np.intersect1d, (each.rows_a for each in pairs))  # rows of the first run
    if not len(common):
        raise UserError("the runs share no item that all could score")
    task = pairs[0].task[np.isin(pairs[0].rows_a, common)]
    stacked = np.array([each.correct_b[np.isin(each.rows_a, common)] for each in pairs])
    return {name: stacked[:, task == name] for name in dict.fromkeys(task.tolist())}


# What a reader of a comparison must know beside its numbers.


def notes_of(pairs: PairedItems) -> list[str]:
    """Partial runs, items left out, and what the two runs were computed with if that differs."""
    notes = []
    run_a, run_b = pairs.run_a, pairs.run_b
    for run in (run_a, run_b):
        if run.state != "done":
            notes.append(f"partial: '{run.id}' is {run.state}, not complete")
    if pairs.intersected:
        notes.append(
            f"intersected: only the {pairs.n + pairs.n_errors:,} items that both runs hold; "
            f"{pairs.n_unpaired:,} left out"
        )
    if pairs.n_errors:
        notes.append(f"{pairs.n_errors:,} items left out: one of the runs could not score them")
    for name, setting in (("dtype", "dtype"), ("attention", "attn"), ("weights", "weights")):
        # What was computed with; the setting may say "auto" in both.
        value_a, value_b = (
            run.config.get(name) or run.settings.get(setting) for run in (run_a, run_b)
        )
        if {value_a, value_b} == {"split", "sdpa"}:
            continue  # split is sdpa, in parts where a prefix is long
        if value_a and value_b and value_a != value_b:
            notes.append(f"the runs differ in {name}: {value_a} and {value_b}")
    times_a, times_b = repeats(run_a.settings), repeats(run_b.settings)
    if times_a != times_b:
        notes.append(
            f"the prompt is given {times_a} times in one run and {times_b} times in the other: the "
            "difference holds what repeating it does, and the longer prompt costs more"
        )
    notes += unchecked_notes(run_a, run_b)
    if "explore" in (run_a.settings.get("fold"), run_b.settings.get("fold")):
        notes.append("explore fold: for choosing recipes; make claims on the confirm fold")
    return notes


def subject(run_a: Run, run_b: Run) -> str:
    """What was changed between two runs, as the subject of a sentence."""
    regime_a, regime_b = parse_regime(run_a.regime), parse_regime(run_b.regime)
    check_a, check_b = run_a.settings.get("checkpoint"), run_b.settings.get("checkpoint")
    times_a, times_b = repeats(run_a.settings), repeats(run_b.settings)
    if run_a.model != run_b.model or check_a not in (check_b, None):
        return f"'{run_b.id}' against '{run_a.id}'"
    if check_a != check_b and regime_a != regime_b:
        return f"Going from the base model under {regime_a} to a fine-tune under {regime_b}"
    if check_a != check_b:
        return "Fine-tuning" + ("" if regime_a.is_causal else f" (both under {regime_a})")
    if times_a != times_b and regime_a == regime_b:
        return f"Giving the prompt {times_b} times instead of {times_a}"
    if times_a != times_b:
        return f"Going from {regime_a}, prompt {times_a} times, to {regime_b}, {times_b} times"
    if regime_a.is_causal and regime_b.bidirectional:
        dials = str(regime_b).partition(":")[2]
        return "Bidirectional prefill" + (f" ({dials})" if dials else "")
    return f"Going from {regime_a} to {regime_b}" if regime_a != regime_b else "The second run"


def comparison_text(result: Comparison) -> str:
    """A comparison for the terminal."""

    def cells(row: Row) -> dict[str, str]:
        return {
            "task": row.task,
            "n": count(row.n),
            "a": f"{row.acc_a:.4f}",
            "b": f"{row.acc_b:.4f}",
            "delta": points(row.delta, signed=True),
            "95 % CI": ends_text(row.low, row.high),
            "broken": count(row.broken),
            "fixed": count(row.fixed),
            "churn": f"{points(row.churn / row.n)} %",
            "p (McNemar)": p_text(row.p_value),
            "p (Holm)": p_text(row.p_holm),
            "detectable": "-" if row.detectable is None else points(row.detectable),
            "verdict": row.words,
        }

    header = list(cells(result.macro))
    lines = [
        f"a: {result.run_a}",
        f"b: {result.run_b}",
        f"metric {result.metric}; differences (b - a) and intervals in points",
        "",
        table(header, [list(cells(row).values()) for row in result.rows]),
        "",
        result.sentence,
    ]
    if result.plain_ratio is not None:
        lines.append(f"plain ratio b/a: {result.plain_ratio:.3f}x")
    lines.append(f"kept above chance: {retention_text(result.above_chance)}")
    if result.above_no_context is not None:
        lines.append(f"kept above no context: {retention_text(result.above_no_context)}")
    if result.information is not None:
        information = result.information
        lines.append(
            f"accuracy by mutual information: a {information.acc_a:.4f}, "
            f"b {information.acc_b:.4f}, {points(information.delta.value, signed=True)} points "
            f"({interval_text(information.delta)})"
        )
    if result.orders:
        from bidir_core.analyse.order_effects import order_text

        lines += ["", *order_text(result.orders)]
    return "\n".join([*lines, *(f"note: {note}" for note in result.notes)])


# Accuracy by pointwise mutual information, lm-eval's ``acc_mutual_info``: the choice with the largest
# log p(choice | context) - log p(choice). The second is what the same model scored with --context none;
# without a context there is nothing to look ahead at, so one such run serves every regime.


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
    right: dict[str, list[tuple[bool, bool]]] = {task: [] for task in pairs.tasks}
    for key in zip(pairs.task.tolist(), pairs.doc_id.tolist()):
        if key in a and key in b:
            right[key[0]].append((a[key], b[key]))
    if not all(right.values()):
        return None
    by_task = [np.array(both).T for both in right.values()]  # bool [run, item]
    acc_a, acc_b = np.mean([both.mean(1) for both in by_task], axis=0)
    return Information(
        float(acc_a), float(acc_b), stats.macro_delta([stats.paired_delta(*b) for b in by_task])
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
