"""A report's tables of its runs: how they were trained, what they took, and where they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bidir_core.analyse.contrasts import (
    BASES,
    Contrast,
    cell_title,
    in_words,
    items_of,
    level,
    mean,
    task_accuracy,
)
from bidir_core.analyse.judgement import Findings
from bidir_core.analyse.pairing import Metric
from bidir_core.analyse.study import CAUSAL, Arm, Cell, Study, ordered_cells
from bidir_core.analyse.verdict import word
from bidir_core.common import formatting
from bidir_core.regimes import parse_regime
from bidir_core.report.markdown import NOT_RUN, Column, Entry, Interval, Kind, Table
from bidir_core.runs.curve import read_curve
from bidir_core.runs.run import Run


def recipe_table(study: Study) -> Table:
    """How each arm was trained, as recorded."""
    rows: list[list[Entry]] = []
    for arm, by_seed in study.finetunes.items():
        run = next(iter(by_seed.values()))
        settings, metrics = run.settings, run.metrics or {}
        data, size = run.config.get("training_data") or {}, metrics.get("weight_bytes")
        dropped = data.get("n_dropped_contaminated")
        rows.append(
            [
                ("Arm", "name", arm.title),
                ("Seeds", "text", ", ".join(map(str, by_seed))),
                ("Trained under", "code", arm.regime),
                ("Method", "text", settings.get("method")),
                ("Data", "code", settings.get("data")),
                ("Steps", "number", settings.get("steps")),
                ("Samples per step", "number", settings.get("batch_samples")),
                ("Learning rate", "text", _text(settings.get("lr"))),
                ("Causal anchor", "text", _text(settings.get("causal_anchor"))),
                ("Samples used", "count", data.get("n_used"), "-"),
                ("Dropped: shared with evaluation items", "count", dropped, "-"),
                ("Tokens trained on", "count", metrics.get("tokens"), "-"),
                ("Final loss", "acc", metrics.get("final_loss"), "-"),
                ("Weights MB", "number", None if size is None else size / 1e6, "-"),
            ]
        )
    return Table.of("recipes", rows)


def curve_table(finetunes: Mapping[Arm, Mapping[int, Run]]) -> Table:
    """Quick evaluations along the training, per arm: means over the seeds that reached a step."""
    rows: list[list[Entry]] = []
    for arm, by_seed in finetunes.items():
        points: dict[tuple[int, str], list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
        for line in (line for run in by_seed.values() for line in read_curve(run.path)):
            evals = line.get("evals")
            for regime, row in evals.items() if isinstance(evals, dict) else ():
                if isinstance(row, dict) and isinstance(row.get("acc"), int | float):
                    points.setdefault((int(line.get("step", 0)), regime), []).append((line, row))
        for (step, regime), seeds in points.items():
            accs = [row["acc"] for _, row in seeds]
            norms = [row["acc_norm"] for _, row in seeds if row.get("acc_norm") is not None]
            spread = Interval(min(accs), max(accs)) if len(accs) > 1 else None
            rows.append(
                [
                    ("Arm", "name", arm.title),
                    ("Step", "count", step),
                    ("Tokens", "count", int(mean([line.get("tokens", 0) for line, _ in seeds]))),
                    ("Seconds", "number", mean([line.get("seconds", 0.0) for line, _ in seeds])),
                    ("Regime", "code", regime),
                    ("n", "count", seeds[0][1].get("n"), "-"),
                    ("Seeds", "count", len(seeds)),
                    ("Macro acc", "acc", mean(accs)),
                    ("Seeds low to high", "spread", spread, "-"),
                    ("Macro acc_norm", "acc", mean(norms) if norms else None, "-"),
                ]
            )
    return Table.of("curve", rows)


def cost_table(study: Study) -> Table:
    """What each run took; the last line is the sum."""
    columns = [
        Column("Run", "code"),
        Column("What", "name"),
        Column("Device"),
        Column("Seconds", "number", "-"),
        Column("Computed tokens", "count", "-"),
        Column("Tokens per second", "number", "-"),
    ]
    table = Table("cost", columns)
    total_seconds, total_tokens = 0.0, 0
    for label, _, run in labelled_runs(study):
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
        table.rows.append([run.id, label, device, seconds, tokens, rate])
        total_seconds += seconds or 0.0
        total_tokens += tokens or 0
    if table:
        table.rows.append(["", "together", "", total_seconds, total_tokens, None])
    return table


def artifact_table(study: Study) -> Table:
    """Every run of the report, so that each number can be traced."""
    rows: list[list[Entry]] = []
    for label, seed, run in labelled_runs(study):
        passed = (run.probe or {}).get("passed")
        probe = "not recorded" if passed is None else "passed" if passed else "FAILED"
        rows.append(
            [
                ("What", "name", label),
                ("Seed", "text", None if seed is None else str(seed)),
                ("Run", "code", run.id),
                ("Items", "count", (run.metrics or {}).get("n_items"), "-"),
                ("Dtype", "text", run.config.get("dtype")),
                ("Probe", "text", probe),
                ("Model fingerprint", "code", str(run.config.get("model_fingerprint") or "")[:12]),
                ("Commit", "code", str(run.config.get("git_commit") or "")[:12]),
                ("Source", "text", run.config.get("source")),
            ]
        )
    return Table.of("artifacts", rows)


def labelled_runs(study: Study) -> list[tuple[str, int | None, Run]]:
    """(what it is, training seed, run): evaluations, then fine-tunes, then the floor."""
    labelled: list[tuple[str, int | None, Run]] = []
    for cell in ordered_cells(study):
        for seed, run in study.runs(*cell).items():
            labelled.append((cell_title(study, cell), None if cell[0] == study.base else seed, run))
    for arm, by_seed in study.finetunes.items():
        labelled += [(f"fine-tune {arm.title}", seed, run) for seed, run in by_seed.items()]
    if study.floor is not None:
        labelled.append(("no-context floor", None, study.floor))
    return labelled


def same_training(study: Study, arm: Arm) -> str | None:
    """Whether an arm and its control shared data, order, steps and seeds; None without both."""
    control = study.control_of(arm)
    ours = study.finetunes.get(arm)
    theirs = study.finetunes.get(control) if control is not None else None
    if not ours or not theirs:
        return None
    data, others = (
        {seed: run.config.get("data_fingerprint") for seed, run in runs.items()}
        for runs in (ours, theirs)
    )
    if set(data) != set(others):  # a control has the arm's recipe
        return "do NOT share the seeds"
    return "share data, order, steps and seeds" if data == others else "do NOT share the data"


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


def macro_table(study: Study, against_base: Mapping[Cell, Contrast]) -> Table:
    """Macro accuracy of every cell, with retention against stage 1."""
    rows: list[list[Entry]] = []
    for arm, regime in ordered_cells(study):
        runs = study.runs(arm, regime)
        acc, norm = level(runs, "acc"), level(runs, "acc_norm")
        contrast = against_base.get((arm, regime))
        spread = acc.spread if acc else None
        ratio = contrast.ratio if contrast else None
        rows.append(
            [
                ("Stage", "name", cell_title(study, (arm, regime))),
                ("Condition", "text", _condition(arm, regime)),
                ("Regime", "code", regime),
                ("n", "count", acc.n if acc else None),
                ("Seeds", "count", len(runs)),
                ("Macro acc", "acc", acc.value if acc else None, NOT_RUN),
                ("95 % CI", "spread", acc and acc.interval, "-"),
                ("Seeds low to high", "spread", Interval(*spread) if spread else None, "-"),
                ("Macro acc_norm", "acc", norm.value if norm else None, "-"),
                ("Above chance kept", "retention", contrast and contrast.above_chance, "-"),
                ("Above no context kept", "retention", contrast and contrast.above_floor, "-"),
                ("Plain ratio", "number", None if ratio is None else f"{ratio:.3f}x", "-"),
            ]
        )
    return Table.of("macro", rows)


def _condition(arm: Arm, regime: str) -> str:
    causal, bidirectional = CONDITIONS[arm.code]
    if parse_regime(regime).bidirectional:
        return bidirectional
    return causal if regime == CAUSAL else f"{causal}, but for a hidden token"


def seeds_note(study: Study, against_base: Mapping[tuple[Arm, str], Contrast]) -> str | None:
    """Which rows of the macro table have a retention from fewer seeds than were run; or None."""
    fewer: dict[str, list[str]] = {}
    for cell in ordered_cells(study):
        contrast, of = against_base.get(cell), len(study.runs(*cell))
        if contrast is not None and contrast.n_seeds < of:
            name = in_words(cell_title(study, cell))
            fewer.setdefault(items_of(contrast.n_seeds, of), []).append(name)
    if not fewer:
        return None
    rows = "; ".join(f"{coverage} ({', '.join(cells)})" for coverage, cells in fewer.items())
    return (
        "Accuracies and their intervals are over all seeds. What is kept of stage 1 and the plain "
        f"ratio are {rows}."
    )


def per_task_table(
    study: Study, metric: Metric, cells: Sequence[Cell], contrasts: Sequence[Contrast]
) -> Table:
    """Accuracy per task in these cells (mean over seeds), then the contrasts' deltas."""
    columns = [Column("Task", "name"), Column("n", "count", "-"), Column("Chance", "acc", "-")]
    columns += [Column(cell_title(study, cell), "acc", "-") for cell in cells]
    for contrast in contrasts:
        kind: Kind = "estimate" if contrast.basis == "paired" else "points"
        columns.append(Column(f"Delta {contrast.title} (points)", kind, "-"))
    table = Table("per_task", columns)
    first = (study.some_run.metrics or {}).get("tasks") or {}
    for task in study.some_run.tasks:
        row: list[Any] = [task, first.get(task, {}).get("n"), first.get(task, {}).get("chance")]
        row += [_cell_accuracy(study, cell, task, metric) for cell in cells]
        for contrast in contrasts:
            delta = next((t for t in contrast.tasks if t.task == task), None)
            paired = contrast.basis == "paired"
            row.append(None if delta is None else delta.interval if paired else delta.delta)
        table.rows.append(row)
    return table


def all_cells_table(study: Study, metric: Metric) -> Table:
    """Accuracy per task of every cell, one line each (means over seeds)."""
    tasks = study.some_run.tasks
    columns = [Column("Stage", "name"), *(Column(task, "acc", "-") for task in tasks)]
    table = Table("per_task_all", columns)
    for cell in ordered_cells(study):
        accuracies = [_cell_accuracy(study, cell, task, metric) for task in tasks]
        table.rows.append([cell_title(study, cell), *accuracies])
    return table


def _cell_accuracy(study: Study, cell: Cell, task: str, metric: Metric) -> float | None:
    accuracies = [task_accuracy(run, task, metric) for run in study.runs(*cell).values()]
    known = [value for value in accuracies if value is not None]
    return mean(known) if known and len(known) == len(accuracies) else None


def two_by_two_table(study: Study, metric: Metric) -> Table:
    """Every arm under its bidirectional regime and under causal; missing cells say so."""
    rows: list[list[Entry]] = []
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
            change = under.value - causal.value if under and causal else None
            causal_ends = causal and causal.interval
            rows.append(
                [
                    ("Arm", "name", arm.title),
                    ("Regime", "code", regime),
                    ("Under the regime", "acc", under.value if under else None, NOT_RUN),
                    ("95 % CI", "spread", under and under.interval, "-"),
                    ("Causal", "acc", causal.value if causal else None, NOT_RUN),
                    ("95 % CI (causal)", "spread", causal_ends, "-"),
                    ("Regime minus causal", "points", change, "-"),
                ]
            )
    return Table.of("two_by_two", rows)


# A report's tables of differences: contrasts, the tests per task, and the interaction.


def contrast_table(contrasts: Sequence[Contrast]) -> Table:
    """One line per contrast: the macro difference and its verdict."""
    rows: list[list[Entry]] = []
    for contrast in contrasts:
        by_seed = contrast.per_seed
        seeds = Interval(min(by_seed), max(by_seed)) if contrast.n_seeds > 1 else None
        title = contrast.title + (" (LEAKY)" if contrast.leaky else "")
        rows.append(
            [
                ("Contrast", "name", title),
                ("n", "count", contrast.n, "-"),
                ("Seeds", "count", max(1, contrast.n_seeds)),
                ("From", "acc", contrast.acc_a),
                ("To", "acc", contrast.acc_b),
                ("Difference (points)", "points", contrast.value),
                ("95 % CI (points)", "interval", contrast.interval, "none"),
                ("Seeds low to high (points)", "interval", seeds, "-"),
                ("Verdict", "text", word(contrast.judgement)),
                ("Detectable (points)", "points", contrast.detectable, "-"),
                ("Interval", "text", BASES[contrast.basis]),
            ]
        )
    return Table.of("contrasts", rows)


def test_table(contrasts: Sequence[Contrast]) -> Table:
    """Churn and McNemar per task; counts are means over seeds, p values by seed."""
    rows: list[list[Entry]] = []
    for contrast in contrasts:
        for task in contrast.tasks:
            churn = None
            if task.judgement.broken is not None and task.judgement.fixed is not None and task.n:
                churn = (task.judgement.broken + task.judgement.fixed) / task.n
            rows.append(
                [
                    ("Contrast", "name", contrast.title),
                    ("Task", "name", task.task),
                    ("n", "count", task.n, "-"),
                    ("Difference (points)", "points", task.delta),
                    ("95 % CI (points)", "interval", task.interval, "-"),
                    ("Broken", "number", task.judgement.broken, "-"),
                    ("Fixed", "number", task.judgement.fixed, "-"),
                    ("Wrong to another wrong", "number", task.changed_wrong, "-"),
                    ("Churn", "percent", churn, "-"),
                    ("McNemar p", "text", _p_values(task.judgement.p_values), "-"),
                    ("p after Holm", "text", _p_values(task.judgement.p_adjusted), "-"),
                ]
            )
    return Table.of("mcnemar", rows)


def interaction_table(numbers: Findings) -> Table:
    """(arm - control under the regime) - (arm - control, causal), macro and by task."""
    study = numbers.study
    columns = [
        Column("Arm", "name"),
        Column("Control", "name"),
        Column("Regime", "code"),
        Column("Task", "name"),
        Column("n", "count", "-"),
        Column("Interaction (points)", "points", NOT_RUN),
        Column("95 % CI (points)", "interval", "-"),
        Column("By seed"),
        Column("Verdict"),
    ]
    table = Table("interaction", columns)
    for arm in study.trained("3B", "distill"):
        result, regime = numbers.interaction(arm), study.own_regime(arm)
        if isinstance(result, str):
            table.rows.append([arm.title, None, regime, "macro", None, None, None, None, result])
            continue
        effect, who = result.effect, [arm.title, result.control.title, regime]
        seeds: str | None = ", ".join(f"{100 * seed:+.1f}" for seed in effect.per_seed)
        for task, estimate in {"macro": effect.estimate, **effect.per_task}.items():
            verdict = word(numbers.judged(estimate))
            numbers_shown = [estimate.n, estimate.value, estimate]
            table.rows.append([*who, task, *numbers_shown, seeds, verdict])
            seeds = None  # of the macro alone
    return table


MOST_P_VALUES = 3


def _p_values(values: Sequence[float]) -> str | None:
    """Each seed's p value; the lowest and the highest of more than :data:`MOST_P_VALUES`."""
    shown = list(map(formatting.p_text, values))
    if len(values) <= MOST_P_VALUES:
        return " / ".join(shown) or None
    low, high = shown[values.index(min(values))], shown[values.index(max(values))]
    return low if low == high else f"{low} to {high}"
