"""A report's tables of its runs: how they were trained, what they took, and where they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bidir_core.analyse.contrasts import (
    BASES,
    Contrast,
    cell_title,
    interaction,
    items_of,
    level,
    task_accuracy,
)
from bidir_core.analyse.pairing import Metric
from bidir_core.analyse.phrases import word
from bidir_core.analyse.study import CAUSAL, RECIPE_FIELDS, Arm, Cell, Study, ordered_cells
from bidir_core.analyse.verdict import judge
from bidir_core.regimes import parse_regime
from bidir_core.report.markdown import NOT_RUN, Column, Interval, Kind, Table
from bidir_core.runs.curve import read_curve
from bidir_core.runs.run import Run


def recipe_table(study: Study) -> Table:
    """How each arm was trained, as recorded."""
    table = Table(
        "recipes",
        [
            Column("Arm"), Column("Seeds"), Column("Trained under", "code"), Column("Method"),
            Column("Data", "code"), Column("Steps", "number"), Column("Samples per step", "number"),
            Column("Learning rate"), Column("Causal anchor"), Column("Samples used", "count", "-"),
            Column("Dropped: shared with evaluation items", "count", "-"),
            Column("Tokens trained on", "count", "-"), Column("Final loss", "acc", "-"),
            Column("Weights MB", "number", "-"),
        ],
    )  # fmt: skip
    for arm, by_seed in study.finetunes.items():
        run = next(iter(by_seed.values()))
        settings, metrics = run.settings, run.metrics or {}
        data, size = run.config.get("training_data") or {}, metrics.get("weight_bytes")
        table.rows.append([
            arm.title, ", ".join(map(str, by_seed)), arm.regime, settings.get("method"),
            settings.get("data"), settings.get("steps"), settings.get("batch_samples"),
            _text(settings.get("lr")), _text(settings.get("causal_anchor")), data.get("n_used"),
            data.get("n_dropped_contaminated"), metrics.get("tokens"), metrics.get("final_loss"),
            size / 1e6 if size is not None else None,
        ])  # fmt: skip
    return table


def curve_table(study: Study) -> Table:
    """Quick evaluations along the training, per arm: means over the seeds that reached a step."""
    table = Table(
        "curve",
        [
            Column("Arm"), Column("Step", "count"), Column("Tokens", "count"),
            Column("Seconds", "number"), Column("Regime", "code"), Column("n", "count", "-"),
            Column("Seeds", "count"), Column("Macro acc", "acc"),
            Column("Seeds low to high", "spread", "-"), Column("Macro acc_norm", "acc", "-"),
        ],
    )  # fmt: skip
    for arm, by_seed in study.finetunes.items():
        points: dict[tuple[int, str], list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
        for run in by_seed.values():
            for line in read_curve(run.path):
                evals = line.get("evals")
                for regime, row in evals.items() if isinstance(evals, dict) else ():
                    if isinstance(row, dict) and isinstance(row.get("acc"), int | float):
                        points.setdefault((int(line.get("step", 0)), regime), []).append(
                            (line, row)
                        )
        for (step, regime), found in points.items():
            accs = [row["acc"] for _, row in found]
            norms = [row["acc_norm"] for _, row in found if row.get("acc_norm") is not None]
            table.rows.append([
                arm.title, step, int(mean([line.get("tokens", 0) for line, _ in found])),
                mean([line.get("seconds", 0.0) for line, _ in found]), regime,
                found[0][1].get("n"), len(found), mean(accs),
                Interval(min(accs), max(accs)) if len(accs) > 1 else None,
                mean(norms) if norms else None,
            ])  # fmt: skip
    return table


def cost_table(study: Study) -> Table:
    """What each run took; the last line is the sum."""
    table = Table(
        "cost",
        [
            Column("Run", "code"), Column("What"), Column("Device"), Column("Seconds", "number", "-"),
            Column("Computed tokens", "count", "-"), Column("Tokens per second", "number", "-"),
        ],
    )  # fmt: skip
    total_seconds, total_tokens = 0.0, 0
    for what, _, run in labelled_runs(study):
        cost = (run.metrics or {}).get("cost") or {}
        if not cost:
            continue
        seconds, tokens = cost.get("seconds"), cost.get("computed_tokens")
        rate = cost.get("tokens_per_second")
        if rate is None and seconds and tokens:
            rate = tokens / seconds
        device = cost.get("device")
        if cost.get("shared_device"):
            device = f"{device} (shared with other runs)"
        table.rows.append([run.id, what, device, seconds, tokens, rate])
        total_seconds += seconds or 0.0
        total_tokens += tokens or 0
    if table.rows:
        table.rows.append(["", "together", "", total_seconds, total_tokens, None])
    return table


def artifact_table(study: Study) -> Table:
    """Every run of the report, so that each number can be traced."""
    table = Table(
        "artifacts",
        [
            Column("What"), Column("Seed"), Column("Run", "code"), Column("Items", "count", "-"),
            Column("Dtype"), Column("Probe"), Column("Model fingerprint", "code"),
            Column("Commit", "code"), Column("Source"),
        ],
    )  # fmt: skip
    for what, seed, run in labelled_runs(study):
        probe = None if run.probe is None else run.probe.get("passed")
        table.rows.append([
            what, None if seed is None else str(seed), run.id, (run.metrics or {}).get("n_items"),
            run.config.get("dtype"), {True: "passed", False: "FAILED"}.get(bool(probe)) if probe is not None else "not recorded",
            str(run.config.get("model_fingerprint") or "")[:12],
            str(run.config.get("git_commit") or "")[:12], run.config.get("source"),
        ])  # fmt: skip
    return table


def labelled_runs(study: Study) -> list[tuple[str, int | None, Run]]:
    """(what it is, training seed, run): evaluations, then fine-tunes, then the floor."""
    found: list[tuple[str, int | None, Run]] = []
    for cell in ordered_cells(study):
        for seed, run in study.runs(*cell).items():
            found.append((cell_title(study, cell), None if cell[0] == study.base else seed, run))
    for arm, by_seed in study.finetunes.items():
        found += [(f"fine-tune {arm.title}", seed, run) for seed, run in by_seed.items()]
    if study.floor is not None:
        found.append(("no-context floor", None, study.floor))
    return found


def same_training(study: Study, arm: Arm) -> str | None:
    """Whether an arm and its control shared data, order, steps and seeds; None without both."""
    control = study.control_of(arm)
    ours = study.finetunes.get(arm)
    theirs = study.finetunes.get(control) if control is not None else None
    if not ours or not theirs:
        return None
    differing = []
    for seed in sorted(set(ours) & set(theirs)):
        a, b = ours[seed], theirs[seed]
        for name in (*RECIPE_FIELDS, "seed"):
            if a.settings.get(name) != b.settings.get(name):
                differing.append(name)
        if a.config.get("data_fingerprint") != b.config.get("data_fingerprint"):
            differing.append("the data themselves")
    if set(ours) != set(theirs):
        differing.append("the seeds")
    if differing:
        return "do NOT share " + ", ".join(dict.fromkeys(differing))
    return "share data, order, steps and seeds"


def _text(value: Any) -> str | None:
    return None if value is None else f"{value:g}" if isinstance(value, float) else str(value)


# A report's tables of accuracies: by cell, by task, and the 2x2.

CONDITIONS = {
    "base": ("vanilla causal prefill", "bidirectional prefill, no fine-tuning"),
    "3B": ("3B checkpoint, causal (non-prefill)", "bidirectional prefill after fine-tune"),
    "3C": ("control checkpoint, causal", "control checkpoint, bidirectional prefill"),
    "distill": ("distilled checkpoint, causal", "bidirectional prefill after distillation"),
    "3A": ("LEAKY checkpoint, causal", "LEAKY checkpoint, bidirectional prefill"),
    "unknown": ("checkpoint, causal", "checkpoint, bidirectional prefill"),
}


def macro_table(study: Study, against_base: Mapping[tuple[Arm, str], Contrast]) -> Table:
    """Macro accuracy of every cell, with retention against stage 1."""
    table = Table(
        "macro",
        [
            Column("Stage"), Column("Condition"), Column("Regime", "code"), Column("n", "count"),
            Column("Seeds", "count"), Column("Macro acc", "acc", NOT_RUN),
            Column("95 % CI", "spread", "-"), Column("Seeds low to high", "spread", "-"),
            Column("Macro acc_norm", "acc", "-"), Column("Above chance kept", "retention", "-"),
            Column("Above no context kept", "retention", "-"), Column("Plain ratio", "number", "-"),
        ],
    )  # fmt: skip
    for arm, regime in ordered_cells(study):
        runs = study.runs(arm, regime)
        acc, norm = level(runs, "acc"), level(runs, "acc_norm")
        found = against_base.get((arm, regime))
        spread = acc.spread if acc else None
        table.rows.append([
            cell_title(study, (arm, regime)),
            _condition(arm, regime),
            regime,
            acc.n if acc else None,
            len(runs),
            acc.value if acc else None,
            Interval(acc.interval.low, acc.interval.high) if acc and acc.interval else None,
            Interval(*spread) if spread else None,
            norm.value if norm else None,
            found.above_chance if found else None,
            found.above_floor if found else None,
            f"{found.ratio:.3f}x" if found and found.ratio is not None else None,
        ])  # fmt: skip
    return table


def _condition(arm: Arm, regime: str) -> str:
    causal, bidirectional = CONDITIONS[arm.code]
    if parse_regime(regime).bidirectional:
        return bidirectional
    return causal if regime == CAUSAL else f"{causal}, but for a hidden token"


def seeds_note(study: Study, against_base: Mapping[tuple[Arm, str], Contrast]) -> str | None:
    """Which rows of the macro table keep their share of stage 1 from fewer seeds than they have."""
    fewer: dict[str, list[str]] = {}
    for cell in ordered_cells(study):
        found, of = against_base.get(cell), len(study.runs(*cell))
        if found is not None and found.n_seeds < of:
            fewer.setdefault(items_of(found.n_seeds, of), []).append(cell_title(study, cell))
    if not fewer:
        return None
    rows = "; ".join(f"{said} ({', '.join(cells)})" for said, cells in fewer.items())
    return (
        "Accuracies and their intervals are over all seeds. What is kept of stage 1, the plain "
        f"ratio and the derived lines are {rows}."
    )


def per_task_table(
    study: Study, metric: Metric, cells: Sequence[Cell], contrasts: Sequence[Contrast]
) -> Table:
    """Accuracy per task in these cells (mean over seeds), then the contrasts' deltas."""
    columns = [Column("Task", "code"), Column("n", "count", "-"), Column("Chance", "acc", "-")]
    columns += [Column(cell_title(study, cell), "acc", "-") for cell in cells]
    for one in contrasts:
        kind: Kind = "estimate" if one.basis == "paired" else "points"
        columns.append(Column(f"Delta {one.b} minus {one.a} (points)", kind, "-"))
    table = Table("per_task", columns)
    first = (study.some_run.metrics or {}).get("tasks") or {}
    for task in study.some_run.tasks:
        row: list[Any] = [task, first.get(task, {}).get("n"), first.get(task, {}).get("chance")]
        row += [_cell_accuracy(study, cell, task, metric) for cell in cells]
        for one in contrasts:
            delta = next((t for t in one.tasks if t.task == task), None)
            paired = one.basis == "paired"
            row.append(None if delta is None else delta.interval if paired else delta.delta)
        table.rows.append(row)
    return table


def all_cells_table(study: Study, metric: Metric) -> Table:
    """Accuracy per task of every cell, one line each (means over seeds)."""
    tasks = study.some_run.tasks
    columns = [Column("Stage"), *(Column(task, "acc", "-") for task in tasks)]
    table = Table("per_task_all", columns)
    for cell in ordered_cells(study):
        accuracies = [_cell_accuracy(study, cell, task, metric) for task in tasks]
        table.rows.append([cell_title(study, cell), *accuracies])
    return table


def _cell_accuracy(study: Study, cell: Cell, task: str, metric: Metric) -> float | None:
    found = [task_accuracy(run, task, metric) for run in study.runs(*cell).values()]
    known = [value for value in found if value is not None]
    return mean(known) if known and len(known) == len(found) else None


def two_by_two_table(study: Study, metric: Metric) -> Table:
    """Every arm under its bidirectional regime and under causal; missing cells are said to be."""
    table = Table(
        "two_by_two",
        [
            Column("Arm"), Column("Regime", "code"), Column("Under the regime", "acc", NOT_RUN),
            Column("95 % CI", "spread", "-"), Column("Causal", "acc", NOT_RUN),
            Column("95 % CI (causal)", "spread", "-"), Column("Regime minus causal", "points", "-"),
        ],
    )  # fmt: skip
    for arm in study.arms:
        if arm.code == "3C" or arm == study.base:
            regimes = study.bidirectional_regimes(arm) or [study.regime]
        else:
            regimes = [study.own_regime(arm)]
        for regime in regimes:
            under = level(study.runs(arm, regime), metric)
            causal = level(study.runs(arm, CAUSAL), metric)
            if under is None and causal is None:
                continue
            table.rows.append([
                arm.title, regime, under.value if under else None,
                Interval.of(under.interval) if under else None, causal.value if causal else None,
                Interval.of(causal.interval) if causal else None,
                under.value - causal.value if under and causal else None,
            ])  # fmt: skip
    return table


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# A report's tables of differences: contrasts, the tests per task, and the interaction.


def contrast_table(contrasts: Sequence[Contrast]) -> Table:
    """One line per contrast: the macro difference and its verdict."""
    table = Table(
        "contrasts",
        [
            Column("Contrast"), Column("n", "count", "-"), Column("Seeds", "count"),
            Column("From", "acc"), Column("To", "acc"), Column("Difference (points)", "points"),
            Column("95 % CI (points)", "interval", "none"),
            Column("Seeds low to high (points)", "interval", "-"), Column("Verdict"),
            Column("Detectable (points)", "points", "-"), Column("Interval"),
        ],
    )  # fmt: skip
    for one in contrasts:
        seeds = Interval(min(one.per_seed), max(one.per_seed)) if one.n_seeds > 1 else None
        table.rows.append([
            f"{one.b} minus {one.a}" + (" (LEAKY)" if one.leaky else ""),
            one.n, max(1, one.n_seeds), one.acc_a, one.acc_b, one.value, Interval.of(one.interval),
            seeds, word(one.judgement), one.detectable, BASES[one.basis],
        ])  # fmt: skip
    return table


def test_table(contrasts: Sequence[Contrast]) -> Table:
    """Churn and McNemar per task; counts are means over seeds, p values by seed."""
    table = Table(
        "mcnemar",
        [
            Column("Contrast"), Column("Task", "code"), Column("n", "count", "-"),
            Column("Difference (points)", "points"), Column("95 % CI (points)", "interval", "-"),
            Column("Broken", "number", "-"), Column("Fixed", "number", "-"),
            Column("Wrong to another wrong", "number", "-"), Column("Churn", "percent", "-"),
            Column("McNemar p", "text", "-"), Column("p after Holm", "text", "-"),
        ],
    )  # fmt: skip
    for one in contrasts:
        for task in one.tasks:
            churn = None
            if task.broken is not None and task.fixed is not None and task.n:
                churn = (task.broken + task.fixed) / task.n
            table.rows.append([
                f"{one.b} minus {one.a}", task.task, task.n, task.delta, Interval.of(task.interval),
                task.broken, task.fixed, task.changed_wrong, churn,
                _p_values(task.p_values), _p_values(task.p_holm),
            ])  # fmt: skip
    return table


def interaction_table(study: Study, metric: Metric, margin: float) -> Table:
    """(arm - control under the regime) - (arm - control, causal), macro and by task."""
    table = Table(
        "interaction",
        [
            Column("Arm"), Column("Control"), Column("Regime", "code"), Column("Task"),
            Column("n", "count", "-"), Column("Interaction (points)", "points", NOT_RUN),
            Column("95 % CI (points)", "interval", "-"), Column("By seed"), Column("Verdict"),
        ],
    )  # fmt: skip
    for arm in study.trained("3B", "distill"):
        found = interaction(study, arm, metric=metric)
        if isinstance(found, str):
            table.rows.append(
                [arm.title, None, study.own_regime(arm), "macro", None, None, None, None, found]
            )
            continue
        value, control = found
        named = {"macro": value.estimate, **value.per_task}
        for task, estimate in named.items():
            macro = task == "macro"
            seeds = ", ".join(f"{100 * one:+.1f}" for one in value.per_seed) if macro else None
            table.rows.append([
                arm.title, control, study.own_regime(arm), task, estimate.n, estimate.value,
                Interval.of(estimate), seeds, word(judge(estimate, margin=margin)),
            ])  # fmt: skip
    return table


MOST_P_VALUES = 3


def _p_values(values: Sequence[float]) -> str | None:
    """Each seed's; of more than a few the lowest and the highest."""
    shown = ["<0.0001" if p < 0.0001 else f"{p:.4f}" for p in values]
    if len(values) <= MOST_P_VALUES:
        return " / ".join(shown) or None
    low, high = (shown[values.index(end(values))] for end in (min, max))
    return low if low == high else f"{low} to {high}"
