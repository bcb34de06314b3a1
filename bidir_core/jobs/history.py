"""What finished runs and jobs really took, on the machine where they ran."""

from __future__ import annotations

import socket
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bidir_core.common.process import package_versions
from bidir_core.jobs.cost_model import Work, kind_of, operations, shape_of
from bidir_core.jobs.job import Job
from bidir_core.runs.metrics import peak_of
from bidir_core.runs.run import Run

SHORTEST_SECONDS = 0.2  # below it a run says nothing about a rate


@dataclass(frozen=True)
class Measured:
    """What one finished run took. ``rate``: operations a second, on each of its devices.

    ``work``: see :func:`kind_of_work`. ``device``: cpu, mps or gpu.
    """

    work: str
    model: str
    device: str
    rate: float | None
    memory_bytes: int | None = None
    dtype: str = "float32"


def kind_of_work(settings: Any) -> str:
    """What decides how well a device is used: ``eval``, or a fine-tune's method and objective."""
    if not settings.get("objective"):
        return "eval"
    mode = settings.get("compile") or "none"
    mode = "default" if mode is True else mode  # as older runs recorded it
    compiled = "" if mode == "none" else f" compiled {mode}"
    return f"{settings.get('method')} {settings.get('objective')}{compiled}"


def history(runs: Sequence[Run]) -> list[Measured]:
    """The measurements in finished runs of this machine, as they come (newest first)."""
    measurements = (measured(run) for run in runs if _made_here(run))
    return [m for m in measurements if m is not None]


def _made_here(run: Run) -> bool:
    """Whether this machine made it: its name, and its torch, since many machines share a name."""
    packages = run.config.get("packages")
    torch = packages.get("torch") if isinstance(packages, dict) else None
    return run.status.get("host") == socket.gethostname() and torch in (
        None,
        package_versions().get("torch"),
    )


def measured(run: Run) -> Measured | None:
    """What a run took, or None if it is unfinished or says nothing of it."""
    metrics, settings = run.metrics or {}, run.settings
    cost = _cost(run) if run.state == "done" else {}
    if cost.get("shared_device"):
        return None  # with other work on the device its seconds say nothing
    seconds, computed = cost.get("seconds"), cost.get("computed_tokens")
    if not seconds or not computed or seconds < SHORTEST_SECONDS:
        return None
    device, shape = kind_of(str(cost.get("device") or "cpu")), shape_of(run.model)
    tune = settings if run.config.get("kind") == "finetune" else None
    if tune is None:
        predicted = cost.get("continuation_tokens") or computed
        work = Work(metrics.get("n_items") or 0, computed, predicted)
    else:
        steps = int(tune.get("steps") or 1)
        samples = steps * int(tune.get("batch_samples") or 1)
        work = Work(samples, computed, float(metrics.get("loss_tokens") or computed), steps)
    sharing = 1 if device == "cpu" else int(cost.get("processes") or 1)
    return Measured(
        work=kind_of_work(tune or {}),
        model=run.model,
        device=device,
        rate=None if shape is None else operations(shape, work, tune) / seconds / sharing,
        memory_bytes=peak_of(cost),
        dtype=str(run.config.get("dtype") or "float32"),
    )


def _cost(run: Run) -> dict[str, Any]:
    return (run.metrics or {}).get("cost") or {}


def start_seconds(known: Sequence[Job], command: str = "eval") -> float | None:
    """The median of what earlier jobs of a command needed besides computing, or None without any:
    imports, weights, the probe, and for a fine-tune the preparation of its data."""
    seconds = []
    jobs = [job for job in known if job.words[0] == command]
    for job in jobs[:20]:
        if job.stored_state != "done" or job.attempt > 1 or job.seconds is None:
            continue
        computing = sum(_cost(Run(path)).get("seconds") or 0 for path in job.run_paths)
        if computing:
            seconds.append(max(0.0, job.seconds - computing))
    return statistics.median(seconds) if seconds else None


def peak_bytes(job: Job) -> int | None:
    """The most memory that the runs of a finished job took."""
    return max(filter(None, (peak_of(_cost(Run(path))) for path in job.run_paths)), default=None)
