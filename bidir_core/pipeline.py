"""The whole experiment in one line: evaluate, fine-tune, evaluate again, report.

There is no state file. Every stage is a run folder, and a stage's run is the one whose recorded
settings are the stage's own: a finished run is used again, an unfinished one is resumed, and only
what is missing is started. So the same line goes on after a kill, and does nothing when done.
"""

from __future__ import annotations

import gc
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bidir_core import evaluate, models, processes
from bidir_core.config import EvalConfig, command_line
from bidir_core.errors import UserError
from bidir_core.estimate_command import estimated, to_text
from bidir_core.launched import is_helper
from bidir_core.models import LoadedModel
from bidir_core.pipeline_clock import Clock
from bidir_core.pipeline_config import PipelineConfig, Stage, plan
from bidir_core.pipeline_runs import Known, checkpoint_of, find_run_of, known_of, roots_of
from bidir_core.report import build_report, write_report
from bidir_core.run_layout import refuse_if_read_only
from bidir_core.store import Run
from bidir_core.training.config import FinetuneConfig
from bidir_core.training.finetune import resume_finetune, run_finetune
from bidir_core.training.goals import OBJECTIVES
from bidir_core.training.overlap import refuse_trained_tasks
from bidir_core.training.sources import check_data


@dataclass(frozen=True)
class Planned:
    """A stage, and the run that it is or was: None if there is none yet."""

    stage: Stage
    run: Run | None

    @property
    def done(self) -> bool:
        return self.run is not None and self.run.state == "done"


def run_pipeline(config: PipelineConfig, *, out: Path | None = None, csv: bool = False) -> Path:
    """Do what is left to do, write the report, and return its path.

    Raises UserError on bad input before anything is written, and when a stage fails; the same
    call then goes on from there.
    """
    refuse_if_read_only("run a pipeline")
    stages = plan(config)
    known = preflight(config, stages)
    target = out or report_path(config)
    loader = _Loader(config)
    runs: dict[str, Run] = {}
    clock = Clock(stages, known.device)
    crew = processes.team(config.device)
    for number, stage in enumerate(stages, 1):
        # Of several processes one looks: a folder may look different a moment later.
        found = crew.on_main(partial(find_run_of, stage, stages, runs, known, config))
        where = f"stage {number} of {len(stages)}: {stage.title}"
        if found is not None and found.state == "done":
            say(f"{where}: done, {found.id}")
            runs[stage.key] = found
            clock.reused(stage, found)
            continue
        if found is not None and found.state == "running":
            raise UserError(f"{where}: '{found.id}' is being written by another process; wait")
        say(f"{where}{f': resuming {found.id}' if found else ''}{clock.left()}")
        started = time.monotonic()
        try:
            path = _run_stage(stage, found, runs, loader)
        except UserError as error:
            raise UserError(f"{where}: {error} (the same line then goes on from here)") from error
        clock.took(stage, time.monotonic() - started)
        runs[stage.key] = Run(path)
    loader.drop()

    def write() -> Path:
        report = build_report(list(runs.values()), roots=roots_of(config))
        for path in write_report(report, target, csv=csv):
            say(f"report: {path}")
        return target

    return crew.on_main(write)


def look(config: PipelineConfig) -> list[Planned]:
    """Each stage with the run it has, without starting anything."""
    stages = plan(config)
    known = preflight(config, stages)
    runs: dict[str, Run] = {}
    planned = []
    for stage in stages:
        found = find_run_of(stage, stages, runs, known, config)
        if found is not None and found.state == "done":
            runs[stage.key] = found
        planned.append(Planned(stage, found))
    return planned


def dry_run(config: PipelineConfig) -> str:
    """The plan as text: each stage's state and the single command that would run it, then what
    those that are left would take."""
    lines = []
    runs: dict[str, Run] = {}
    every = look(config)
    for number, planned in enumerate(every, 1):
        stage, run = planned.stage, planned.run
        state = "to do"
        if run is not None:
            state = f"done, {run.id}" if planned.done else f"to resume, {run.id} is {run.state}"
        if planned.done and run is not None:
            runs[stage.key] = run
        lines += [f"{number}. {stage.title}: {state}", f"   {stage_line(stage, runs, run)}"]
    lines.append(f"report -> {report_path(config)}")
    left = [planned.stage for planned in every if not planned.done]
    if left:
        lines += ["", to_text(estimated(config, stages=left), config)]
    return "\n".join(lines)


def stage_line(stage: Stage, runs: Mapping[str, Run], run: Run | None = None) -> str:
    """The command line that does one stage by itself."""
    config = stage.config
    resume = "" if run is None or run.state == "done" else f" --resume {shlex.quote(run.id)}"
    if isinstance(config, FinetuneConfig):
        flag = OBJECTIVES[config.objective].flag
        return f"{command_line('finetune', config)} {flag}{resume}"
    checkpoint = None
    if stage.trained_by is not None:
        trained = runs.get(stage.trained_by)
        checkpoint = checkpoint_of(trained) if trained else f"FINAL-OF-{stage.trained_by}"
    return command_line("eval", replace(config, checkpoint=checkpoint)) + resume


def report_path(config: PipelineConfig) -> Path:
    """``<runs>/reports/<model>-<digest>.md``."""
    slug = "".join(c if c.isalnum() or c in ".-" else "-" for c in Path(config.model).name)
    return roots_of(config)[0] / "reports" / f"{slug}-{config.digest}.md"


def preflight(config: PipelineConfig, stages: Sequence[Stage]) -> Known:
    """Every check that needs no weights in memory; UserError before the first stage starts."""
    first = stages[0].config
    assert isinstance(first, EvalConfig)
    check_data(config.data)
    checked = models.preflight(
        config.model,
        revision=config.revision,
        dtype=config.dtype,
        device=config.device,
        attn=config.attn,
        regime=config.regime,
    )
    return known_of(checked, evaluate.read_items(first))


def _run_stage(stage: Stage, found: Run | None, runs: dict[str, Run], loader: _Loader) -> Path:
    config = stage.config
    if isinstance(config, FinetuneConfig):
        loader.drop()  # two models need not fit at once
        if found is None:
            return run_finetune(config)
        runtime = [s.name for s in fields(config) if s.metadata["role"] == "runtime"]
        return resume_finetune(found.path, {name: getattr(config, name) for name in runtime})
    checkpoint = checkpoint_of(runs[stage.trained_by]) if stage.trained_by else None
    loaded = loader.get(checkpoint)
    refuse_trained_tasks(config.tasks, loaded.training_record)
    if found is not None:
        return evaluate.resume(found.path, {}, loaded=loaded)
    return evaluate.evaluate(replace(config, checkpoint=checkpoint), loaded=loaded)


class _Loader:
    """Keeps one model in memory: the checkpoint that was asked for last."""

    def __init__(self, config: PipelineConfig):
        self._config = config
        self._key: str | None = None
        self._loaded: LoadedModel | None = None

    def get(self, checkpoint: str | None) -> LoadedModel:
        if self._loaded is None or self._key != checkpoint:
            self.drop()
            config = self._config
            self._loaded = models.load(
                config.model,
                revision=config.revision,
                checkpoint=checkpoint,
                dtype=config.dtype,
                device=config.device,
                attn=config.attn,
                regime=config.regime,
            )
            self._key = checkpoint
        return self._loaded

    def drop(self) -> None:
        self._loaded = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def say(text: str) -> None:
    """A line of progress, on standard error like the bars; of several processes one says it."""
    if not is_helper():
        print(text, file=sys.stderr, flush=True)


def pipeline_command(
    given: dict[str, Any],
    *,
    preset: str,
    out: str | None = None,
    csv: bool = False,
    only_plan: bool = False,
) -> int:
    """The command line's ``pipeline``: 0 when the report is on disk (or the plan is printed)."""
    from bidir_core.pipeline_config import from_preset

    config = from_preset(given, preset)
    target = Path(out).expanduser() if out else None
    if target is not None and target.suffix != ".md":
        raise UserError(f"--out {out}: a report is Markdown; give a name that ends in .md")
    if only_plan:
        print(dry_run(config))
        return 0
    path = run_pipeline(config, out=target, csv=csv)
    if not is_helper():
        print(path)
    return 0
