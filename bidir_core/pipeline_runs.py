"""Which run stands for a stage of a pipeline: the one whose recorded settings are the stage's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from bidir_core import models
from bidir_core.config import EvalConfig
from bidir_core.devices import device_name
from bidir_core.items import Item, data_fingerprint
from bidir_core.model_source import fetch_weights
from bidir_core.pipeline_config import PipelineConfig, Stage
from bidir_core.reporting.arms import trained_run_id
from bidir_core.run_layout import runs_roots, stage_dir_for
from bidir_core.store import Run, list_runs
from bidir_core.training.config import FinetuneConfig
from bidir_core.weights import fingerprint, weight_files

# Compact runs leave texts out, which no number depends on.
_NOT_COMPARED = ("checkpoint", "model", "dtype", "compact", "data")
_RESUMABLE = ("failed", "cancelled", "lost", "partial")


@dataclass(frozen=True)
class Known:
    """What a run must have been made with to stand for a stage: taken once, at the start."""

    model_fingerprint: str
    data_fingerprint: str
    dtype: str
    device: str


def known_of(checked: models.Preflight, items: Sequence[Item]) -> Known:
    """From a model that was checked, its weight files fetched here, and the items."""
    if checked.local:
        folder = Path(checked.source)
    else:
        folder = fetch_weights(checked.name, checked.source, checked.revision)
    return Known(
        model_fingerprint=fingerprint(checked.config.get_text_config(), weight_files(folder)),
        data_fingerprint=data_fingerprint(items),
        dtype=str(checked.dtype).removeprefix("torch."),
        device=device_name(checked.device),
    )


def find_run_of(
    stage: Stage,
    stages: Sequence[Stage],
    runs: Mapping[str, Run],
    known: Known,
    config: PipelineConfig | EvalConfig,
    *,
    named: str | None = None,
) -> Run | None:
    """The newest finished run of a stage, else the newest one that can be resumed, else None.

    ``runs``: the finished stages so far, for the checkpoints they made. ``config`` says where runs
    are; ``named`` takes runs of that name only. A run of other weights,
    other items or another dtype is not this stage's, whatever its settings say. A fine-tune whose
    checkpoint is gone stands only if everything that would evaluate it is there.
    """
    trained = runs.get(stage.trained_by) if stage.trained_by else None
    if stage.trained_by and trained is None:
        return None
    if isinstance(stage.config, FinetuneConfig):
        folder = stage_dir_for("finetune", objective=stage.config.objective)
    else:
        checkpoint = stage.trained_by
        folder = stage_dir_for("eval", regime=stage.config.regime, checkpoint=checkpoint)
    fitting = [
        run
        for run in list_runs(roots_of(config))
        if run.stage == folder
        and named in (None, run.name)
        and is_run_of(run, stage, trained, known)
    ]
    for states in (("done",), ("running",), _RESUMABLE):
        for run in fitting:  # newest first
            if run.state not in states:
                continue
            if stage.trains and run.state == "done" and not (run.path / "final").is_dir():
                judges = [one for one in stages if one.trained_by == stage.key]
                made = [find_run_of(one, stages, {stage.key: run}, known, config) for one in judges]
                if not all(one is not None and one.state == "done" for one in made):
                    continue
            return run
    return None


def is_run_of(run: Run, stage: Stage, trained: Run | None, known: Known) -> bool:
    settings, config = run.settings, stage.config
    for spec in fields(config):
        if spec.metadata["role"] != "identity" or spec.name in _NOT_COMPARED:
            continue
        value = getattr(config, spec.name)
        recorded = settings.get(spec.name, spec.default)
        if (list(value) if isinstance(value, tuple) else value) != (
            list(recorded) if isinstance(recorded, tuple) else recorded
        ):
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
    """Whether an evaluation used this fine-tune's checkpoint."""
    given = str(run.settings.get("checkpoint") or "")
    if given and Path(given).expanduser().resolve() == Path(checkpoint_of(trained)).resolve():
        return True
    return trained_run_id(run) == trained.id and not Path(given).exists()


def _same_place(recorded: str, wanted: str) -> bool:
    """Equal names, or two spellings of one path."""
    if recorded == wanted:
        return True
    there = Path(wanted).expanduser()
    return there.exists() and Path(recorded).expanduser().resolve() == there.resolve()


def checkpoint_of(trained: Run) -> str:
    """Where a fine-tune's checkpoint lies, as briefly as it can be said from here."""
    final = trained.path / "final"
    here = Path.cwd()
    return str(final.relative_to(here) if final.is_relative_to(here) else final)


def roots_of(config: PipelineConfig | EvalConfig) -> list[Path]:
    if config.runs_dir is not None:
        return [Path(config.runs_dir).expanduser().resolve()]
    return runs_roots()
