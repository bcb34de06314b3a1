"""The whole experiment in one line: evaluate, fine-tune, evaluate again, report.

There is no state file. Every stage is a run folder, and a stage's run is the one whose recorded
settings are the stage's own: a finished run is used again, an unfinished one is resumed, and only
what is missing is started. So the same line goes on after a kill, and does nothing when done.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from bidir_core.analyse.study import trained_run_id
from bidir_core.common.errors import UserError
from bidir_core.common.process import is_helper
from bidir_core.common.progress import say
from bidir_core.common.settings import command_line, to_json
from bidir_core.data.items import data_fingerprint
from bidir_core.evaluate import evaluate, processes
from bidir_core.evaluate.config import EvalConfig
from bidir_core.evaluate.run_scoring import refuse_trained_tasks
from bidir_core.jobs.doctor import layer_rate
from bidir_core.jobs.estimate import duration, estimated, to_text
from bidir_core.jobs.pipeline_config import PipelineConfig, Stage, plan
from bidir_core.models import devices, loading
from bidir_core.models.loading import LoadedModel
from bidir_core.models.source import fetch_weights
from bidir_core.models.weight_files import fingerprint, weight_files
from bidir_core.report.report import build_report, write_report
from bidir_core.runs.find import list_runs
from bidir_core.runs.layout import FINETUNE_DIRS, evaluation_dir, refuse_if_read_only, runs_roots
from bidir_core.runs.run import Run
from bidir_core.train.config import OBJECTIVES, FinetuneConfig
from bidir_core.train.data import check_data
from bidir_core.train.finetune import resume_finetune, run_finetune


class Planned(NamedTuple):
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
    expected = preflight(config, stages)
    target = out or report_path(config)
    loader = _Loader(config)
    runs: dict[str, Run] = {}
    team = processes.team(config.device)
    for number, (stage, run) in enumerate(_planned(stages, runs, expected, config, team), 1):
        title = f"stage {number} of {len(stages)}: {stage.title}"
        if stage.key in runs:
            _say(f"{title}: done, {runs[stage.key].id}")
            continue
        if run is not None and run.state == "running":
            raise UserError(f"{title}: '{run.id}' is being written by another process; wait")
        resuming = f": resuming {run.id}" if run else ""
        _say(f"{title}{resuming}{_time_left(config, stages[number - 1 :], runs)}")
        try:
            path = _run_stage(stage, run, runs, loader)
        except UserError as error:
            raise UserError(f"{title}: {error} (the same line then goes on from here)") from error
        runs[stage.key] = Run(path)
    loader.drop()

    def write() -> Path:
        report = build_report(list(runs.values()), roots=roots_of(config))
        for path in write_report(report, target, csv=csv):
            say(f"report: {path}")
        return target

    return team.on_main(write)


def _planned(
    stages: Sequence[Stage],
    runs: dict[str, Run],
    known: Known,
    config: PipelineConfig,
    team: processes.Team = processes.ALONE,
) -> Iterator[Planned]:
    """Each stage with the run it has. Finished runs are put into ``runs``; the caller must add what
    it finishes itself before it asks for the next stage."""
    for stage in stages:
        # Only one of several processes looks: a folder may look different a moment later.
        run = team.on_main(partial(find_run_of, stage, stages, runs, known, config))
        if run is not None and run.state == "done":
            runs[stage.key] = run
        yield Planned(stage, run)


def look(config: PipelineConfig, runs: dict[str, Run] | None = None) -> list[Planned]:
    """Each stage with the run it has, without starting anything; ``runs`` gets the finished ones."""
    stages = plan(config)
    known = preflight(config, stages)
    return list(_planned(stages, {} if runs is None else runs, known, config))


def dry_run(config: PipelineConfig) -> str:
    """The plan as text: each stage's state and the single command that would run it, then what
    those that are left would take."""
    lines = []
    runs: dict[str, Run] = {}
    planned = look(config, runs)
    for number, (stage, run) in enumerate(planned, 1):
        state = "to do"
        if run is not None:
            done = stage.key in runs
            state = f"done, {run.id}" if done else f"to resume, {run.id} is {run.state}"
        lines += [f"{number}. {stage.title}: {state}", f"   {stage_line(stage, runs, run)}"]
    lines.append(f"report -> {report_path(config)}")
    remaining = [stage for stage, _ in planned if stage.key not in runs]
    if remaining:
        lines += ["", to_text(estimated(config, stages=remaining, layer_rate=layer_rate), config)]
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
    """Every check that needs no weights in memory; UserError before the first stage starts.

    The model's weight files are fetched if they are not here.
    """
    first = stages[0].config
    assert isinstance(first, EvalConfig)
    check_data(config.data)
    checked = loading.preflight(**loading.asked_by(config, regime=config.regime))
    folder = Path(checked.source)
    if not checked.local:
        folder = fetch_weights(checked.name, checked.source, checked.revision)
    return Known(
        model_fingerprint=fingerprint(checked.config.get_text_config(), weight_files(folder)),
        data_fingerprint=data_fingerprint(evaluate.read_items(first)),
        dtype=str(checked.dtype).removeprefix("torch."),
    )


def _run_stage(stage: Stage, run: Run | None, runs: dict[str, Run], loader: _Loader) -> Path:
    config = stage.config
    if isinstance(config, FinetuneConfig):
        loader.drop()  # two models need not fit at once
        if run is None:
            return run_finetune(config)
        runtime = [s.name for s in fields(config) if s.metadata["role"] == "runtime"]
        return resume_finetune(run.path, {name: getattr(config, name) for name in runtime})
    checkpoint = checkpoint_of(runs[stage.trained_by]) if stage.trained_by else None
    loaded = loader.get(checkpoint)
    refuse_trained_tasks(config.tasks, loaded.training_record)
    if run is not None:
        return evaluate.resume(run.path, {}, loaded=loaded)
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
            asked = loading.asked_by(
                self._config, checkpoint=checkpoint, regime=self._config.regime
            )
            self._loaded = loading.load(**asked)
            self._key = checkpoint
        return self._loaded

    def drop(self) -> None:
        self._loaded = None
        devices.sweep()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _time_left(config: PipelineConfig, stages: Sequence[Stage], runs: Mapping[str, Run]) -> str:
    """About how long the stages take that are left, by the runs so far; empty if unknown."""
    remaining = [stage for stage in stages if stage.key not in runs]
    seconds = estimated(config, stages=remaining).seconds
    return "" if seconds is None else f", about {duration(seconds)} left"


def _say(line: str) -> None:
    """By the main process only."""
    if not is_helper():
        say(line)


# Which run stands for a stage of a pipeline: the one whose recorded settings are the stage's.

# Compact runs leave texts out, which no number depends on.
_NOT_COMPARED = ("checkpoint", "model", "dtype", "compact", "data")

_RESUMABLE = ("failed", "cancelled", "lost", "partial")


@dataclass(frozen=True)
class Known:
    """What a run must have been made with to stand for a stage; read once, at the start."""

    model_fingerprint: str
    data_fingerprint: str
    dtype: str


def find_run_of(
    stage: Stage,
    stages: Sequence[Stage],
    runs: Mapping[str, Run],
    known: Known,
    config: PipelineConfig,
) -> Run | None:
    """The newest finished run of a stage, else the newest one that can be resumed, else None.

    ``runs``: the finished stages so far, for the checkpoints they made. ``config`` says where runs
    are. A run of other weights, other items or another dtype is not this stage's, whatever its
    settings say. A fine-tune whose checkpoint is gone stands only if all its evaluations are there.
    """
    trained = runs.get(stage.trained_by) if stage.trained_by else None
    if stage.trained_by and trained is None:
        return None
    if isinstance(stage.config, FinetuneConfig):
        folder = FINETUNE_DIRS[stage.config.objective]
    else:
        folder = evaluation_dir(stage.config.regime, stage.trained_by)
    fitting = [
        run
        for run in list_runs(roots_of(config))
        if run.stage == folder and is_run_of(run, stage, trained, known)
    ]
    for states in (("done",), ("running",), _RESUMABLE):
        for run in fitting:  # newest first
            if run.state not in states:
                continue
            trains = isinstance(stage.config, FinetuneConfig)
            if trains and run.state == "done" and not (run.path / "final").is_dir():
                followers = [s for s in stages if s.trained_by == stage.key]
                scored = [
                    find_run_of(s, stages, {stage.key: run}, known, config) for s in followers
                ]
                if not all(scoring is not None and scoring.state == "done" for scoring in scored):
                    continue
            return run
    return None


def is_run_of(run: Run, stage: Stage, trained: Run | None, known: Known) -> bool:
    settings, config = run.settings, stage.config
    wanted = to_json(config)
    for spec in fields(config):
        if spec.metadata["role"] != "identity" or spec.name in _NOT_COMPARED:
            continue
        recorded = settings.get(spec.name, spec.default)
        if wanted[spec.name] != (list(recorded) if isinstance(recorded, tuple) else recorded):
            return False
    if not _same_place(run.model, config.model):
        return False
    if isinstance(config, FinetuneConfig) and not _same_place(
        str(settings.get("data")), config.data
    ):
        return False
    if run.config.get("dtype") not in (None, known.dtype):
        return False
    if isinstance(config, EvalConfig):
        if run.config.get("data_fingerprint") not in (None, known.data_fingerprint):
            return False
        if trained is not None:
            return _evaluates(run, trained)
    return run.config.get("model_fingerprint") in (None, known.model_fingerprint)


def _evaluates(run: Run, trained: Run) -> bool:
    checkpoint = str(run.settings.get("checkpoint") or "")
    path = Path(checkpoint).expanduser()
    if checkpoint and path.resolve() == Path(checkpoint_of(trained)).resolve():
        return True
    return trained_run_id(run) == trained.id and not Path(checkpoint).exists()


def _same_place(recorded: str, wanted: str) -> bool:
    """Equal names, or two spellings of one path."""
    if recorded == wanted:
        return True
    path = Path(wanted).expanduser()
    return path.exists() and Path(recorded).expanduser().resolve() == path.resolve()


def checkpoint_of(trained: Run) -> str:
    """The path of a fine-tune's checkpoint, relative to the working folder if it lies inside."""
    final = trained.path / "final"
    folder = Path.cwd()
    return str(final.relative_to(folder) if final.is_relative_to(folder) else final)


def roots_of(config: PipelineConfig | EvalConfig) -> list[Path]:
    if config.runs_dir is not None:
        return [Path(config.runs_dir).expanduser().resolve()]
    return runs_roots()
