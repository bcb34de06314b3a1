"""How far a job is, read from the files of the run it writes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bidir_core.analyse import stats
from bidir_core.jobs import Job, log_tail
from bidir_core.runs.run import Run

_STAGE = re.compile(r"^stage (\d+) of (\d+): (.*?)(?: \| .*)?$", re.MULTILINE)
_UNITS = {"finetune": "step", "why": "mask"}


@dataclass(frozen=True)
class Progress:
    """Where a job stands. None where it has not said yet."""

    done: int | None = None
    total: int | None = None
    rate: float | None = None  # units a second
    eta_seconds: float | None = None
    unit: str = "item"
    stage: str = ""  # of a pipeline or sweep, e.g. "stage 3 of 9: fine-tune 3B, seed 0"
    metric: str = ""  # e.g. acc or loss
    value: float | None = None
    interval: stats.Estimate | None = None  # of an accuracy, on the items so far

    @property
    def share(self) -> float | None:
        return min(1.0, self.done / self.total) if self.done is not None and self.total else None


def progress(job: Job) -> Progress:
    """The progress of the run that a job writes now, and its newest measure."""
    stage = _stage(job) if job.words[0] == "pipeline" else ""
    path = job.run_path
    run = Run(path) if path is not None else None
    if run is None or (job.state == "running" and run.state != "running"):
        return Progress(stage=stage)  # loading, or between two stages
    status = run.status
    if job.words[0] == "lab":
        stage = str(status.get("point") or "")
    elif job.n_runs > 1:
        stage = f"regime {len(job.run_paths)} of {job.n_runs}: {run.regime}"
    training = run.config.get("kind") == "finetune"
    metric, value, interval = "", None, None
    if training:
        metric, value = "loss", status.get("loss")
    elif n := status.get("recorded"):
        metric, interval = "acc", stats.proportion(min(n, status.get("right") or 0), n)
        value = interval.value
    return Progress(
        done=status.get("done"),
        total=status.get("total"),
        rate=status.get("rate"),
        eta_seconds=status.get("eta_seconds"),
        unit=_UNITS.get(str(run.config.get("kind")), "item"),
        stage=stage,
        metric=metric,
        value=value,
        interval=interval,
    )


def _stage(job: Job) -> str:
    matches = _STAGE.findall(log_tail(job, lines=400, n_bytes=64_000))
    return "stage {} of {}: {}".format(*matches[-1]) if matches else ""
