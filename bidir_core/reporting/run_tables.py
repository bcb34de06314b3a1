"""A report's tables of its runs: how they were trained, what they took, and where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bidir_core.reporting.accuracy_tables import mean
from bidir_core.reporting.arms import RECIPE_FIELDS, Arm
from bidir_core.reporting.contrasts import cell_title
from bidir_core.reporting.markdown import Column, Interval, Table
from bidir_core.reporting.study import Study, ordered_cells
from bidir_core.store import Run
from bidir_core.training.curve import read_curve


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
