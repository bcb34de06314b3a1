"""The Run page's parts: what a run is, what it found, what it was made with; and how it goes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import streamlit as st

from bidir_core import jobs
from bidir_core.analyse import selection, stats
from bidir_core.analyse.compare import compare
from bidir_core.analyse.verdict import phrase, settled
from bidir_core.common.errors import UserError
from bidir_core.common.settings import command_line, from_json, join_list, settings_of
from bidir_core.data import item_texts
from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.evaluate.config import EvalConfig
from bidir_core.explain import configs
from bidir_core.explain.sweep_points import LabConfig
from bidir_core.jobs.progress import progress
from bidir_core.regimes import BIDIRECTIONAL
from bidir_core.report.charts import training_loss
from bidir_core.runs.curve import read_curve
from bidir_core.runs.layout import STAGE1, STAGE2, STAGES
from bidir_core.runs.run import Run
from bidir_core.train.config import OBJECTIVES, FinetuneConfig
from bidir_ui import runs_table
from bidir_ui.compare import compare_view
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.lab import lab_data, lab_view
from bidir_ui.launch import form, jobs_view
from bidir_ui.reading import data, opens
from bidir_ui.reading.data import RunInfo

POLL_SECONDS = 3
CONFIGS = form.CLASSES | {"attend": configs.AttendConfig, "why": configs.WhyConfig}


def sentence(info: RunInfo) -> str:
    """What the run is, in one sentence."""
    run = data.run_of(info)
    settings, metrics = run.settings, (run.metrics or {}) if info.state != "corrupt" else {}
    model = fmt.clip(info.model or "a model", 80)
    weights = f"{model}, {info.weights}" if info.checkpoint else model
    if info.is_finetune:
        stage = STAGES.get(info.stage)
        name = stage.plain if stage else "fine-tune"
        how = {"full": "all weights", "lora": "LoRA adapters"}.get(info.method, info.method)
        steps = f"{fmt.count(metrics.get('steps') or settings.get('steps'))} steps"
        loss = metrics.get("final_loss")
        end = f"; the loss ended at {fmt.number(loss, 3)} nats a token" if loss is not None else ""
        return (
            f"{info.stage_label}, {name}: {model}, {how} trained under {info.regime} for {steps} on "
            f"the data “{fmt.clip(str(settings.get('data')), 60)}”, seed {info.train_seed}{end}."
        )
    if info.is_sweep:
        n_points = metrics.get("n_points")
        how_many = f"{fmt.count(n_points)} points, " if n_points else ""
        asked = f"{fmt.count(info.n_items)} items ({info.extent})" if info.n_items else info.extent
        return f"A sweep of {weights}: {how_many}each a regime on {asked}."
    if info.kind == "why":
        item = f"{settings.get('task')}/{settings.get('doc_id')}"
        return f"Why {weights} answers {fmt.clip(item, 80)} as it does under {info.regime}."
    if info.kind == "attend":
        return f"Where {weights} looked, observed in one forward pass under each regime."
    if info.kind == "recommend":
        lead = f"A regime recommended for {weights} from prompts alone, without right answers"
        return f"{lead}: {configs.recommendation(metrics)}." if info.is_done else f"{lead}."
    answered = f"{fmt.count(info.n_items)} items ({info.extent})" if info.n_items else info.extent
    acc = info.macro.get("acc")
    right = f"; {fmt.percent(acc)} right, mean over {len(info.tasks)} tasks" if acc else ""
    who = "Published: " if info.is_reference else "Imported: " if info.is_imported else ""
    return f"{who}{info.stage_label}. {weights} under {info.regime} on {answered}{right}."


def swept(info: RunInfo, runs: tuple[RunInfo, ...], metric: str) -> None:
    """What a sweep says so far, as the Lab begins with it, and how to go on where it stopped."""
    lab = lab_data.load(info, runs, metric)
    if lab.points:
        lab_view.verdict(lab)
    if info.partial_note and info.state != "running":
        widgets.note(f"It is {info.partial_note}. To go on:")
        widgets.command(f"python -m bidir_core lab --resume {info.id}")


def leads_on(info: RunInfo, runs: tuple[RunInfo, ...]) -> None:
    """Links to where its results are read, and to the Launch page for what comes next."""
    page, query = opens.results(info, runs)
    with widgets.row(gap="medium"):
        if page != "run":
            widgets.page_link(page, opens.WORDS[page], query, "arrow_forward")
        if page == "compare":
            flips = {name: query[name] for name in ("a", "b")} | {"flip": "broken~fixed"}
            widgets.page_link("flips", "Its flips", flips, "swap_vert")
        elif info.stage == STAGE1 and info.is_done and info.can_pair:
            _candidate(info, runs)
        elif info.is_sweep and info.is_done:
            _points(info, runs)
        if info.kind == "recommend" and info.is_done and not info.checkpoint:
            regime = (data.run_of(info).metrics or {})["recommended"]["regime"]
            query = {"stage": "custom", "f.model": info.model, "f.regime": regime}
            widgets.page_link("launch", f"Evaluate it under {regime}", query, "play_circle")
    if info.is_finetune and info.is_done:
        _checkpoint(info, runs)
    elif info.is_evaluation and info.is_done and not info.has_items:
        widgets.banner("info", "Scores only", runs_table.METRICS_ONLY)


def _points(info: RunInfo, runs: tuple[RunInfo, ...]) -> None:
    """A sweep's damage, item by item; and what starts the model's controls, if none were run."""
    points = {
        run.regime: run.id
        for run in runs
        if run.id.startswith(f"{info.id}/") and run.can_pair and not run.variant
    }
    if {"causal", str(BIDIRECTIONAL)} <= points.keys():
        query = url.params(a=points["causal"], b=points[str(BIDIRECTIONAL)])
        widgets.page_link("compare", "Compare causal with bidirectional", query, "balance")
        flips = query | {"flip": "broken~fixed"}
        widgets.page_link("flips", "Its flips", flips, "swap_vert")
    of_model = [run for run in runs if run.is_sweep and run.is_done and run.model == info.model]
    if not any(data.run_of(run).settings.get("controls") for run in of_model):
        query = {"stage": "lab-controls", "f.model": info.model}
        widgets.page_link("launch", "Launch the controls", url.params(**query), "play_circle")


def _candidate(info: RunInfo, runs: tuple[RunInfo, ...]) -> None:
    """A baseline beside its bidirectional partner, or what starts that."""
    for run in runs:
        partner = run.regime == str(BIDIRECTIONAL) and run.context == info.context
        if partner and run.stage == STAGE2 and run.can_pair and run.same_items(info):
            query = url.params(a=info.id, b=run.id)
            widgets.page_link("compare", f"Compare with {run.regime}", query, "arrow_forward")
            return
    try:
        config = from_json(EvalConfig, data.run_of(info).settings)
    except (UserError, TypeError, ValueError, KeyError):
        return
    passed_on = {"model", "tasks", "limit", "dtype", "regime"}
    others = [spec for spec in fields(EvalConfig) if spec.metadata["role"] == "identity"]
    others = [spec for spec in others if spec.name not in passed_on]
    if any(getattr(config, spec.name) != spec.default for spec in others):
        return  # the command line can say all of it, a link only this
    query = {
        "stage": "stage2",
        "f.model": config.model,
        "f.tasks": join_list(config.tasks),
        "f.limit": str(config.limit or "all"),
        "f.dtype": config.dtype,
    }
    label = "Evaluate the same items under bidirectional"
    widgets.page_link("launch", label, url.params(**query), "play_circle")


def _checkpoint(info: RunInfo, runs: tuple[RunInfo, ...]) -> None:
    """Evaluations of a fine-tune's weights, and the buttons that start those that are missing."""
    widgets.heading("Its checkpoint, evaluated")
    evals = [run for run in runs if run.is_evaluation and f"{info.id}/" in run.checkpoint + "/"]
    rows = [
        (
            widgets.link(run.regime, "run", url.params(id=run.id)),
            run.extent,
            fmt.count(run.n_items),
            fmt.percent(run.macro.get("acc")),
            fmt.number(runs_table.half_width(run), 1),
            widgets.link("Compare", page, query) if page == "compare" else fmt.NONE,
        )
        for run, (page, query) in ((run, opens.results(run, runs)) for run in evals)
    ]
    if rows:
        head = ("Regime", "Extent", "Items", "Macro acc", "± points", "")
        name = f"evaluations_{info.id}"
        html.show(widgets.table(head, rows, name=name, left=(1, 5)))
    final = Path(info.path) / "final"
    if not final.is_dir():
        widgets.note(
            "Its weights are not on this machine, so it cannot be evaluated again here. The command "
            "below trains it anew."
        )
        return
    trained = info.regime if info.regime.startswith("bidirectional") else "bidirectional"
    with widgets.row(gap="medium"):
        for regime in (trained, "causal"):
            query = {"stage": "stage4", "f.checkpoint": str(final), "f.regime": regime}
            if info.model != EMBEDDED_MODEL:
                query["f.model"] = info.model
            label = f"Evaluate this checkpoint under {regime}"
            widgets.page_link("launch", label, url.params(**query), "play_circle")


def scores(info: RunInfo) -> None:
    """Accuracy of each task with its interval; a fine-tune's curves instead."""
    if info.is_finetune:
        _curves(info)
        return
    rows, intervals = [], []
    for task, row in info.tasks.items():
        n, acc = int(row.get("n") or 0), row.get("acc")
        interval = stats.accuracy(float(acc), n) if n and acc is not None else None
        intervals += [interval] if interval else []
        rows.append(
            _score(fmt.task(task), n, acc, interval, row.get("acc_norm"), row.get("chance"))
        )
    if len(rows) > 1:
        mean = stats.macro_delta(intervals) if len(intervals) == len(rows) else None
        macro = info.macro
        total = _score("Macro mean", info.n_items, macro.get("acc"), mean, macro.get("acc_norm"))
        rows.append(total)
    if rows:
        widgets.heading("Scores, %")
        head = ("Task", "n", "acc", *map(fmt.tie, ("95 % low", "95 % high")), "acc_norm", "chance")
        name = f"scores_{info.id}"
        html.show(widgets.table(head, rows, name=name, total=len(rows) > 1))


def _score(
    name: str,
    n: int,
    acc: float | None,
    interval: stats.Estimate | None,
    acc_norm: float | None,
    chance: float | None = None,
) -> tuple[str, ...]:
    """A row of the scores: n, accuracy with its interval's ends, acc_norm and chance."""
    low, high = (interval.low, interval.high) if interval else (None, None)
    shares = (acc, low, high, acc_norm, chance)
    return (name, fmt.count(n), *(fmt.percent(share).removesuffix(" %") for share in shares))


def _curves(info: RunInfo) -> None:
    lines = read_curve(Path(info.path))
    losses = [(int(x["step"]), float(x["loss"])) for x in lines if x.get("loss") is not None]
    if losses:
        widgets.heading("Loss")
        widgets.chart(
            training_loss(*zip(*losses, strict=True)),
            f"Training loss by step: from {losses[0][1]:.3f} to {losses[-1][1]:.3f} nats a token.",
            key=f"loss-{info.id}",
        )
    table = compare_view.curves([info], info.model)
    if table:
        widgets.heading("Recovery while training")
        compare_view.recovery_panels(table)


# While it runs: progress, and whether its difference to the baseline is decided already.


def live(info: RunInfo, runs: tuple[RunInfo, ...], metric: str) -> None:
    """Read again every few seconds, until the run ends and the whole page is drawn anew."""
    if info.state not in ("running", "queued"):
        return
    baseline = selection.baseline_of(runs, info, data.by_id(runs, url.get("a")))

    @st.fragment(run_every=POLL_SECONDS)
    def body() -> None:
        run = Run(info.path)
        if run.state != info.state:
            st.rerun()
        job = next((j for j in jobs.list_jobs() if j.is_active and j.run_path == run.path), None)
        if job is None:
            runs_table.progress_table([info])
        else:
            jobs_view.bar(job, progress(job))
            jobs_view.cancel_button(job)
        if info.is_finetune:
            _curves(info)
        elif baseline is not None and info.is_evaluation:
            running_difference(run, info, baseline, metric)

    body()


def running_difference(run: Run, info: RunInfo, baseline: RunInfo, metric: str) -> None:
    """The paired difference on the items so far, and whether it is decided."""
    widgets.heading("Against its baseline so far")
    try:
        result = compare(data.run_of(baseline), run, metric=metric, intersect=True)
    except UserError as error:
        widgets.note(f"Nothing to pair yet: {fmt.clip(str(error), 200)}.")
        return
    macro = result.macro
    widgets.lead(
        f"{fmt.points(macro.delta)} points {fmt.interval(macro.low, macro.high)}, n = "
        f"{fmt.count(macro.n)}: {phrase(macro.judgement)}."
    )
    wide = stats.anytime(macro.estimate)
    ends = fmt.interval(wide.low, wide.high)
    if settled(macro.estimate):
        widgets.banner(
            "info",
            "Could stop now: settled",
            f"Also with the interval that allows for looking again and again, {ends}. "
            "Items come longest first, so the rest are shorter than these; what is recorded stays.",
        )
    else:
        widgets.note(f"Not settled: allowing for looking again and again, {ends}.")


# What it was made with.


def changed(info: RunInfo) -> list[tuple[str, str, str, str]]:
    """Settings that are not their command's defaults: flag, value, default, what it means. All of
    them where the defaults are not known here."""
    kind = CONFIGS.get(info.kind)
    given = data.run_of(info).settings
    if kind is None:
        return [(name, _plain(value), fmt.NONE, "") for name, value in given.items()]
    rows = []
    for spec in settings_of(kind):
        value, default = given.get(spec.name), spec.default
        if spec.name not in given or spec.name in ("name", "runs_dir") or default is MISSING:
            continue
        if _plain(value) != _plain(default):
            meaning = str(spec.metadata.get("help") or "")
            rows.append((spec.name, _plain(value), _plain(default), fmt.clip(meaning, 160)))
    return rows


def _plain(value: object) -> str:
    if value is None:
        return "not set"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return fmt.clip(item_texts.visible(str(value)), 200)


def again(info: RunInfo) -> str:
    """The command that makes this run again; empty where no one line says all of its settings."""
    settings = data.run_of(info).settings
    try:
        if info.is_finetune:
            tuned = from_json(FinetuneConfig, settings)
            return f"{command_line('finetune', tuned)} {OBJECTIVES[tuned.objective].flag}"
        if info.is_sweep:
            sweep = from_json(LabConfig, settings)
            asked = "".join(f" --sweep {shlex.quote(text)}" for text in sweep.sweep)
            return command_line("lab", sweep) + asked
        if info.kind in ("eval", "recommend") and not settings.get("patch"):
            return command_line(info.kind, from_json(CONFIGS[info.kind], settings))
    except (UserError, TypeError, ValueError, KeyError):
        pass
    return ""


def made_with(info: RunInfo) -> None:
    """Settings, probe, cost, environment and log."""
    run = data.run_of(info)
    config, differs = run.config, changed(info)
    left, right = st.columns([3, 2], gap="large")
    with left:
        widgets.heading("Settings that are not the defaults")
        if differs:
            here, usual = html.span("b-phone", "Here: "), html.span("b-phone", "Default: ")
            settings = [
                (
                    html.join(widgets.code_text(name), " ", widgets.small(meaning)),
                    html.join(here, value),
                    html.join(usual, default),
                )
                for name, value, default, meaning in differs
            ]
            head, name = ("Setting", "Here", "Default"), f"settings_{info.id}"
            table = widgets.table(head, settings, name=name, left=(0, 1, 2))
            html.show(html.div("b-cards", table))
        else:
            widgets.note("None.")
        if line := again(info):
            widgets.note("The same again:")
            widgets.command(line)
    with right:
        widgets.heading("Mask probe")
        if info.is_sweep:
            widgets.note("Each point has its own.")
        else:
            _probe(run)
        widgets.heading("Cost")
        widgets.facts(_cost(info.cost) or [("", "not recorded")])
    with st.expander("Environment", key="run-environment"):
        packages = config.get("packages")
        named = (
            "dtype",
            "attention",
            "device",
            "git_commit",
            "model_fingerprint",
            "data_fingerprint",
        )
        rows = [
            (name.replace("_", " "), _plain(config[name])) for name in named if config.get(name)
        ]
        rows += [("host", str(run.status["host"]))] if run.status.get("host") else []
        rows += list(packages.items()) if isinstance(packages, Mapping) else []
        widgets.facts(rows or [("", "not recorded")])
    with st.expander("Log", key="run-log", on_change="rerun") as log:
        if log.open:
            st.code(item_texts.visible(run.log_tail()) or "It left no log.", language=None)
            widgets.note("The whole log: ", widgets.code_text(f"{info.path}/log.txt"))


def _probe(run: Run) -> None:
    probe = run.probe or {}
    # One report a regime.
    reports = probe["reports"] if isinstance(probe.get("reports"), list) else [probe]
    listed = [report.get("checks") for report in reports if isinstance(report, Mapping)]
    known = [checks for checks in listed if isinstance(checks, list)]
    checks = [check for checks in known for check in checks if isinstance(check, Mapping)]
    if not checks:
        widgets.note("No probe is recorded.")
        return
    passed = sum(bool(check.get("passed")) for check in checks)
    note = ": the model attends as the regime says" if passed == len(checks) else ""
    widgets.note(f"{passed} of {len(checks)} checks passed{note}.")
    with st.expander("The checks", key="run-probe"):
        marks = {True: "✓", False: "✕"}
        rows = [
            (
                f"{marks[bool(check.get('passed'))]} {check.get('name', '')}".replace("_", " "),
                fmt.clip(str(check.get("detail") or ""), 200),
            )
            for check in checks
        ]
        name = f"probe_{run.id}"
        html.show(widgets.table(("Check", "What was seen"), rows, name=name, left=(1,)))


def _cost(cost: Mapping[str, Any]) -> list[tuple[str, str]]:
    shared = ", other runs used the device meanwhile" if cost.get("shared_device") else ""
    rows = [("time", fmt.duration(cost.get("seconds")) + shared)] if cost.get("seconds") else []
    for name in ("computed_tokens", "prefix_tokens", "continuation_tokens"):
        if cost.get(name):
            rows.append((name.replace("_", " "), fmt.count(cost[name])))
    peak = cost.get("peak_memory_bytes")
    for where, size in peak.items() if isinstance(peak, Mapping) else ():
        rows.append((f"peak memory, {where}", fmt.size(size)))
    return rows + ([("device", fmt.clip(str(cost["device"]), 60))] if cost.get("device") else [])
