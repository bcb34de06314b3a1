"""Run a sweep: the model is loaded once, items are encoded once, each point is a run of its own.

    runs/lab/<stamp>/config.json      settings, and the points planned
                     texts*.parquet   the items, once per prompt condition (see shared_texts)
                     points/<slug>/   a run folder: config, probe, items, metrics, log
                     metrics.json     written last: every point against causal, and the verdicts

A killed sweep goes on with the points that are not complete, and within the one it was at.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bidir_core import evaluate, models, run_scoring
from bidir_core.config import EvalConfig, to_json
from bidir_core.devices import device_name
from bidir_core.encoding import EncodedItem
from bidir_core.errors import UserError
from bidir_core.items import Item, data_fingerprint
from bidir_core.lab import controls, summary, terminal
from bidir_core.lab.config import LabConfig
from bidir_core.lab.points import Condition, Point, condition_of, lay_out
from bidir_core.lab.sweep import expand
from bidir_core.models import LoadedModel
from bidir_core.progress import Progress, logging_to, terminable
from bidir_core.records import to_table
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL, parse_regime
from bidir_core.resuming import resumable
from bidir_core.run_layout import LAB, check_new_run
from bidir_core.run_writer import RunWriter
from bidir_core.scoring import ScoringPlan, auto_batch_tokens, plan_scoring
from bidir_core.shared_texts import write_texts
from bidir_core.store import Run


class Prompts:
    """The items of one model, encoded once per prompt condition."""

    def __init__(self, config: LabConfig, loaded: LoadedModel | models.Preflight):
        self.config, self.loaded = config, loaded
        self.usual = condition_of(config)
        self._items: dict[str, list[Item]] = {}  # by context: nothing else changes them
        self._made: dict[Condition, tuple[list[Item], list[EncodedItem], bool]] = {}
        self._plans: dict[tuple[Condition, bool], ScoringPlan] = {}

    def evaluation(self, point: Point) -> EvalConfig:
        """The settings of one point as an evaluation."""
        return self.config.evaluation(
            regime=point.regime, patch=point.patch, name=None, **point.condition._asdict()
        )

    def of(self, condition: Condition) -> tuple[list[Item], list[EncodedItem], bool]:
        """Items, the same encoded, and whether a BOS stands in front."""
        if condition not in self._made:
            config = self.config.evaluation(**condition._asdict())
            if condition.context not in self._items:
                self._items[condition.context] = evaluate.read_items(config)
            items = self._items[condition.context]
            self._made[condition] = (items, *evaluate.encode(config, self.loaded, items))
        return self._made[condition]

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


def run_lab(config: LabConfig) -> Path:
    """Run a sweep and return its folder. UserError on bad input, before anything is written."""
    check_new_run(config.runs_dir, config.name)
    found = evaluate.preflight(config.evaluation(), CAUSAL)
    regimes = expand(config.sweeps, found.n_layers)
    prompts = Prompts(config, found)
    items, _, bos_added = prompts.of(prompts.usual)
    extra, notes = controls.plan(prompts) if config.controls else ([], [])
    points = lay_out(prompts.usual, regimes, extra)
    loaded = models.load_weights(found)
    prompts.loaded = loaded
    writer = RunWriter.create(
        LAB,
        to_json(config),
        root=config.runs_dir,
        name=config.name,
        **{
            **evaluate.run_facts(loaded, items, bos_added, CAUSAL),
            "kind": "lab",
            "batch_tokens": config.batch_tokens or auto_batch_tokens(loaded.device),
            "points": [point.to_json(prompts.usual) for point in points],
            "notes": notes,
            "n_layers": found.n_layers,
            **({"middle_token": controls.middle_token(prompts)} if config.controls else {}),
        },
    )
    _run(writer, prompts, points, loaded)
    return writer.path


def resume_lab(
    reference: str | Path, given: Mapping[str, Any], *, runs_dir: str | None = None
) -> Path:
    """Go on with an unfinished sweep; nothing that was scored is scored again.

    Of a finished one it only says again, on stderr, what it found.
    """
    run, config = resumable(reference, "lab", LabConfig, given, runs_dir=runs_dir)
    if run.state == "done":
        said = (f"{run.id} is complete; nothing was run", *terminal.lines(run.metrics or {}))
        print(*said, sep="\n", file=sys.stderr)
        return run.path
    config = replace(
        config,
        device=given.get("device", config.device),
        # One sweep has one number format and one batch plan, also where "auto" would now differ.
        dtype=run.config.get("dtype") or config.dtype,
        attn=run.config.get("attention") or config.attn,
        batch_tokens=run.config.get("batch_tokens") or config.batch_tokens,
    )
    prompts = Prompts(config, evaluate.preflight(config.evaluation(), CAUSAL))
    items, _, _ = prompts.of(prompts.usual)
    evaluate.check_same(run, "data_fingerprint", data_fingerprint(items), "the benchmark data")
    loaded = models.load_weights(prompts.loaded)  # type: ignore[arg-type]
    evaluate.check_same(run, "model_fingerprint", loaded.fingerprint, "the model")
    prompts.loaded = loaded
    points = [Point.from_json(value) for value in run.config["points"]]
    _run(RunWriter.resume(run), prompts, points, loaded)
    return run.path


def _run(writer: RunWriter, prompts: Prompts, points: Sequence[Point], loaded: LoadedModel) -> None:
    with writer, terminable(), logging_to(writer.path / "log.txt") as log:
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
            _tell_left(log, progress, number, len(points), started, sum(before))
        if prompts.config.controls:
            controls.measure_attention(writer.path, prompts, loaded)
        found = summary.summarise(Run(writer.path))
        spent = [(Run(run.path).metrics or {}).get("cost", {}).get("seconds", 0.0) for run in runs]
        writer.finish(
            metrics=found,
            cost={
                "seconds": round(sum(spent), 3),
                "wall_seconds": round(time.monotonic() - started, 3),
                "device": device_name(loaded.device),
            },
        )
        progress.close()
        for line in terminal.lines(found):
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
        rows = [run_scoring.item_fields(one, tokens=not compact) for one in encoded]
        if compact:
            rows = [{**row, **dict.fromkeys(("contexts", "continuations"))} for row in rows]
        write_texts(to_table(rows), sweep.path / texts)
    known = Run(run.path)  # a fresh look: what exists now
    if known.config and known.state != "corrupt":
        writer, before = RunWriter.resume(known), known.status.get("cost")
    else:
        writer, before = (
            RunWriter.create(
                LAB,
                to_json(config),
                folder=run.path,
                **evaluate.run_facts(loaded, items, bos_added, regime),
                texts=texts,
            ),
            None,
        )
    run_scoring.score_into(
        writer,
        config,
        loaded,
        regime,
        encoded,
        before=before,
        plan=prompts.plan(point, loaded),
        title=title,
        advanced=progress.advance,
    )


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


def _tell_left(
    log: logging.Logger, progress: Progress, number: int, total: int, started: float, before: int
) -> None:
    fresh = progress.done - before
    left = (progress.total - progress.done) * (time.monotonic() - started) / max(fresh, 1)
    if number < total:
        log.info("%d of %d points done, about %.0f s left", number, total, left)
