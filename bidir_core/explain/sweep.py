"""Run a sweep: the model is loaded once, items are encoded once, each point is a run of its own.

    runs/lab/<stamp>/config.json      settings, and the points planned
                     texts*.parquet   the items, once per prompt condition (see shared_texts)
                     points/<slug>/   a run folder: config, probe, items, metrics, log
                     metrics.json     written last: every point against causal, and the verdicts

A killed sweep goes on with the points that are not complete, and within the one it was at.
"""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bidir_core.analyse.order_effects import OrderArm, order_text
from bidir_core.common import formatting
from bidir_core.common.errors import UserError
from bidir_core.common.files import visible, write_json
from bidir_core.common.progress import Progress
from bidir_core.common.settings import to_json
from bidir_core.data.encoding import CHAT_DATE, EncodedItem
from bidir_core.data.items import Item, data_fingerprint
from bidir_core.evaluate import evaluate
from bidir_core.evaluate.config import EvalConfig
from bidir_core.evaluate.run_scoring import item_fields, score_into
from bidir_core.evaluate.scoring import ScoringPlan, auto_batch_tokens, plan_scoring
from bidir_core.explain import lab_run
from bidir_core.explain.controls import OUTCOME_WORDS, STORY
from bidir_core.explain.observe import observe, passage_of
from bidir_core.explain.recommend import predict
from bidir_core.explain.sweep_outcomes import percent
from bidir_core.explain.sweep_points import (
    ATTENTION_FILE,
    OPENED,
    SINK,
    Condition,
    LabConfig,
    Point,
    condition_of,
    control_points,
    expand,
    lay_out,
    predicted_regime,
    preset_points,
    preset_sweep,
)
from bidir_core.explain.sweep_summary import removed_sentence, summarise_sweep
from bidir_core.models import loading
from bidir_core.models.devices import device_name
from bidir_core.models.loading import LoadedModel
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL, parse_regime
from bidir_core.runs.find import check_same, resumable
from bidir_core.runs.layout import LAB, check_new_run
from bidir_core.runs.records import to_table, write_texts
from bidir_core.runs.run import Run
from bidir_core.runs.writer import RunWriter


def run_lab(config: LabConfig) -> Path:
    """Run a sweep and return its folder. UserError on bad input, before anything is written."""
    check_new_run(config.runs_dir, config.name)
    plan = evaluate.preflight(config.evaluation(), CAUSAL)
    regimes = expand(config.sweep, plan.n_layers)
    prompts = Prompts(config, plan)
    items, _, bos_added = prompts.of(prompts.usual)
    controls, notes = _plan_controls(prompts) if config.controls else ([], [])
    preset = preset_points(config.preset, prompts.usual)
    for point in preset:
        prompts.of(point.condition)  # raises before weights are read if it is too long
    loaded = loading.load_weights(plan)
    prompts.loaded = loaded
    predicted, opened = _prediction(config, loaded) if config.preset else ({}, OPENED)
    swept = preset_sweep(config.preset, plan.n_layers, opened) + regimes
    points = lay_out(prompts.usual, swept, controls, preset)
    item_facts = evaluate.item_facts(items, bos_added, CHAT_DATE)
    facts = evaluate.run_facts(loaded, item_facts, CAUSAL, config.tasks) | predicted
    if config.controls:
        facts["middle_token"] = middle_token(prompts)
    writer = RunWriter.create(
        LAB,
        to_json(config),
        root=config.runs_dir,
        name=config.name,
        kind="lab",
        batch_tokens=config.batch_tokens or auto_batch_tokens(loaded.device),
        points=[point.to_json(prompts.usual) for point in points],
        notes=notes,
        n_layers=plan.n_layers,
        **facts,
    )
    _run(writer, prompts, points, loaded)
    return writer.path


def _prediction(config: LabConfig, loaded: LoadedModel) -> tuple[dict[str, Any], str]:
    """What is recorded of the prediction that was stored before any label, and its regime."""
    run = predict(config, loaded)
    metrics = run.metrics or {}
    opened = predicted_regime(metrics)
    predicted = {"run": run.id, "predictions": metrics["predictions"], "regime": opened}
    return {"predicted": predicted}, opened


def resume_lab(
    reference: str | Path, given: Mapping[str, Any], *, runs_dir: str | None = None
) -> Path:
    """Go on with an unfinished sweep; nothing that was scored is scored again.

    Of a finished one it only says again, on stderr, what it found.
    """
    run, config = resumable(reference, "lab", LabConfig, given, runs_dir=runs_dir)
    if run.state == "done":
        report = (f"{run.id} is complete; nothing was run", *lines(run.metrics or {}))
        print(*map(visible, report), sep="\n", file=sys.stderr)
        return run.path
    config = evaluate.as_recorded(config, run)
    prompts = Prompts(
        config, evaluate.preflight(config.evaluation(), CAUSAL), evaluate.chat_date_of(run)
    )
    items, _, _ = prompts.of(prompts.usual)
    check_same(run, "data_fingerprint", data_fingerprint(items), "the benchmark data")
    loaded = loading.load_weights(prompts.loaded)  # type: ignore[arg-type]
    check_same(run, "model_fingerprint", loaded.fingerprint, "the model")
    prompts.loaded = loaded
    points = [Point.from_json(value) for value in run.config["points"]]
    _run(RunWriter.resume(run), prompts, points, loaded)
    return run.path


def _run(writer: RunWriter, prompts: Prompts, points: Sequence[Point], loaded: LoadedModel) -> None:
    with lab_run.at_work(writer) as log:
        started = time.monotonic()
        log.info("%s, %d points -> %s", prompts.config.model, len(points), writer.id)
        for note in writer.config.get("notes") or []:
            log.info("note: %s", note)
        sizes = [len(prompts.of(point.condition)[1]) for point in points]
        runs = [Run(writer.path / "points" / point.slug(prompts.usual)) for point in points]
        before = [_recorded(run) for run in runs]
        progress = Progress(
            sum(sizes), done=sum(before), report=writer.heartbeat, shown=False, title="sweep"
        )
        for number, (point, run) in enumerate(zip(points, runs, strict=True), start=1):
            if run.state == "done":
                continue
            title = f"[{number}/{len(points)}] {point.regime}"
            writer.heartbeat(progress.done, progress.total, point=title)
            _run_point(writer, prompts, point, run, loaded, title, progress)
            log.info("%d of %d points done", number, len(points))
        if prompts.config.controls:
            measure_attention(writer.path, prompts, loaded)
        metrics = summarise_sweep(Run(writer.path))
        spent = [(Run(run.path).metrics or {}).get("cost", {}).get("seconds", 0.0) for run in runs]
        writer.finish(
            metrics=metrics,
            cost={
                "seconds": round(sum(spent), 3),
                "wall_seconds": round(time.monotonic() - started, 3),
                "device": device_name(loaded.device),
            },
        )
        progress.close()
        for line in lines(metrics):
            log.info("%s", line)


def _run_point(
    sweep: RunWriter,
    prompts: Prompts,
    point: Point,
    run: Run,
    loaded: LoadedModel,
    title: str,
    progress: Progress,
) -> None:
    """Evaluate one point, from the start or from where a killed process left it."""
    items, encoded, bos_added = prompts.of(point.condition)
    config, regime = prompts.evaluation(point), parse_regime(point.regime)
    texts = _texts_name(point.condition, prompts.usual)
    if not (sweep.path / texts).exists():
        compact = prompts.config.compact
        rows = [item_fields(item, tokens=not compact) for item in encoded]
        if compact:
            rows = [{**row, **dict.fromkeys(("contexts", "continuations"))} for row in rows]
        write_texts(to_table(rows), sweep.path / texts)
    existing, before = Run(run.path), None  # read again: the folder may have been written since
    if existing.config and existing.state != "corrupt":
        writer, before = RunWriter.resume(existing), existing.status.get("cost")
    else:
        chat_date = prompts.chat_date if config.chat_template else None
        item_facts = evaluate.item_facts(items, bos_added, chat_date)
        facts = evaluate.run_facts(loaded, item_facts, regime, config.tasks)
        writer = RunWriter.create(LAB, to_json(config), folder=run.path, texts=texts, **facts)
    plan = prompts.plan(point, loaded)
    score_into(writer, config, loaded, regime, plan, before, title=title, advanced=progress.advance)


def _recorded(run: Run) -> int:
    """How many items of a point are done already."""
    if not run.has_items:
        return 0
    try:
        return run.items_table(("doc_id",)).num_rows
    except UserError:
        return 0


def _texts_name(condition: Condition, usual: Condition) -> str:
    if condition == usual:
        return "texts.parquet"
    return f"texts_{Point('causal', condition).slug(usual).removeprefix('causal_')}.parquet"


# The end of a sweep for the terminal: its points, its controls, and the verdict last.

FINDING_WIDTH = 72  # characters of a control's finding in a line
NO_BREAK = "\N{NO-BREAK SPACE}"


def lines(metrics: Mapping[str, Any]) -> list[str]:
    """A finished sweep's ``metrics.json`` in words; what an earlier version lacks is left out."""
    text = _points(metrics.get("points") or [])
    arms = ((metrics.get("orders") or {}).get("acc") or {}).items()
    text += order_text({family: list(map(OrderArm.from_json, stored)) for family, stored in arms})
    text += _controls(metrics.get("controls") or [])
    if law := (metrics.get("law") or {}).get("acc"):
        text.append(f"law: {law['sentence']}")
    sentence = verdict(metrics)
    return [*text, f"verdict: {sentence}"] if sentence else text


def verdict(metrics: Mapping[str, Any]) -> str | None:
    """What the sweep's best point does to the damage; where none was chosen, what sink=1 does."""
    if chosen := (metrics.get("best") or {}).get("acc"):
        return str(chosen["sentence"])
    usual = next((point["condition"] for point in metrics.get("points") or []), None)
    for point in metrics.get("points") or []:
        if (point["regime"], point["patch"], point["condition"]) == (str(SINK), None, usual):
            return removed_sentence(point["regime"], point["acc"]) + "."
    return None


def _points(points: list[dict[str, Any]]) -> list[str]:
    rows = []
    for point in points:
        numbers = point["acc"]
        delta, share = numbers["delta"], numbers["removed"]
        name = " · ".join(filter(None, (point["regime"], point["patch"], point["condition_words"])))
        accuracy = "-" if numbers["value"] is None else f"{numbers['value']:.4f}"
        change = interval = removed = ""
        if delta:
            change, low, high = (
                formatting.points(delta[end], signed=True) for end in ("value", "low", "high")
            )
            interval = f"{low} to {high}"
        if share and share["value"] is not None:
            removed = f"{percent(share['value'])} %"
        rows.append([name, accuracy, change, interval, removed])
    header = ("point", "acc", "to causal, points", "95 % CI", "damage removed")
    return formatting.table(header, rows).splitlines()


def _controls(controls: list[dict[str, Any]]) -> list[str]:
    """What each control says of the story, wrapped to a table."""
    rows = []
    for control in controls:
        title, outcome = control["title"], OUTCOME_WORDS[control["outcome"]]
        # No line ends between a number and its sign or unit.
        finding = control["finding"].replace(" %", f"{NO_BREAK}%")
        finding = finding.replace("n = ", f"n{NO_BREAK}={NO_BREAK}")
        for part in textwrap.wrap(finding, FINDING_WIDTH):
            rows.append((title, outcome, part.replace(NO_BREAK, " ")))
            title = outcome = ""
    if not rows:
        return []
    table = formatting.table(("control", "the story is", "what was found"), rows, left=2)
    return ["", f"controls of the story that {STORY}:", *table.splitlines(), ""]


def _plan_controls(prompts: Prompts) -> tuple[list[Point], list[str]]:
    """The points that the controls need, and a note for each that this model does not allow."""
    usual, tokenizer = prompts.usual, prompts.loaded.tokenizer
    conditions = []
    if prompts.of(usual)[2]:
        conditions.append(usual._replace(bos="none"))
    elif tokenizer.bos_token_id is not None:
        conditions.append(usual._replace(bos="add"))
    if usual.chat_template or getattr(tokenizer, "chat_template", None):
        conditions.append(usual._replace(chat_template=not usual.chat_template))
    allowed, notes = [], []
    for condition in conditions:
        try:
            prompts.of(condition)
            allowed.append(condition)
        except UserError as error:
            notes.append(f"no control with {condition.words(usual)}: {error}")
    n_layers = prompts.loaded.n_layers
    return control_points(usual, middle_token(prompts), allowed, n_layers), notes


def middle_token(prompts: Prompts) -> int:
    """The placebo's token: half the median prompt length, so that most prompts have it inside."""
    encoded = prompts.of(prompts.usual)[1]
    lengths = [len(prefix) for item in encoded if not item.error for prefix in item.prefixes]
    return max(2, int(np.median(lengths)) // 2) if lengths else 2


ITEMS_PER_TASK = 5  # for the attention that triviality looks at


def measure_attention(folder: Path, prompts: Prompts, loaded: LoadedModel) -> None:
    """How much attention goes to later tokens with and without a sink, on a few items of each task.

    Written to ``attention.json``; a resumed sweep does not measure twice.
    """
    if (folder / ATTENTION_FILE).exists():
        return
    by_task: dict[str, list[Any]] = {}
    for item in prompts.of(prompts.usual)[1]:
        if not item.error and len(item.prefix(item.item.gold)) > 1:
            by_task.setdefault(item.item.task, []).append(item)
    chosen = []
    for members in by_task.values():
        places = np.linspace(0, len(members) - 1, min(ITEMS_PER_TASK, len(members)))
        chosen += [members[int(place)] for place in places]
    by_regime: dict[str, dict[str, list[float]]] = {}
    for regime in (BIDIRECTIONAL, SINK):
        means = [observe(loaded, passage_of(item), regime).shares.mean() for item in chosen]
        future = [round(float(mean["future"].mean()), 5) for mean in means]
        by_regime[str(regime)] = {"future": future}
    items = [item.item.item_id for item in chosen]
    write_json(
        folder / ATTENTION_FILE, {"schema": 1, "items": items, "regimes": by_regime}, dense=True
    )


class Prompts:
    """The items of one model, encoded once per prompt condition."""

    def __init__(
        self, config: LabConfig, loaded: LoadedModel | loading.Preflight, chat_date: str = CHAT_DATE
    ):
        self.config, self.loaded, self.chat_date = config, loaded, chat_date
        self.usual = condition_of(config)
        self._items: dict[tuple[str, int], list[Item]] = {}  # by what changes them
        # By condition: items, the same encoded, and whether a BOS stands in front.
        self.of = cache(self._of)
        self._plans: dict[tuple[Condition, bool], ScoringPlan] = {}

    def evaluation(self, point: Point) -> EvalConfig:
        """The settings of one point as an evaluation."""
        return self.config.evaluation(
            regime=point.regime, patch=point.patch, name=None, **point.condition._asdict()
        )

    def _of(self, condition: Condition) -> tuple[list[Item], list[EncodedItem], bool]:
        config = self.config.evaluation(**condition._asdict())
        slot = (condition.context, condition.repeat_prompt)
        if slot not in self._items:
            self._items[slot] = evaluate.read_items(config)
        items = self._items[slot]
        encoded, bos_added = evaluate.encode(config, self.loaded, items, self.chat_date)
        return items, encoded, bos_added

    def plan(self, point: Point, loaded: LoadedModel) -> ScoringPlan:
        """The batch plan, as in an evaluation; regimes that are not causal share one."""
        regime = parse_regime(point.regime)
        slot = (point.condition, regime.is_causal)
        if slot not in self._plans:
            self._plans[slot] = plan_scoring(
                self.of(point.condition)[1],
                regime=CAUSAL if regime.is_causal else BIDIRECTIONAL,
                device=loaded.device,
                batch_tokens=self.config.batch_tokens,
                implementation=loaded.implementation,
            )
        return self._plans[slot]
