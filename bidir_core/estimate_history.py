"""What finished runs really took: it corrects the cost model, on the machine where they ran."""

from __future__ import annotations

import os
import socket
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

from bidir_core.estimate_compile import launches_left, mode_of, paced
from bidir_core.estimate_cost import Training, Work, rates_of, seconds_of
from bidir_core.estimate_shape import shape_of
from bidir_core.jobs import Job
from bidir_core.store import Run

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SHORTEST_SECONDS = 0.2  # below it a run says nothing about a rate


@dataclass(frozen=True)
class Measured:
    """What one finished run took. ``ratio``: its seconds over those the cost model gives it.

    ``weight``: of a fine-tune its method and objective, which decide what it computes. ``compile``:
    its ``--compile``; of a compiled one ``ratio`` is of its later steps, and ``compile_seconds``
    what went beside them.
    """

    run: str
    kind: str  # eval or finetune
    model: str
    device: str  # cpu, mps or gpu
    ratio: float | None
    memory_bytes: int | None = None
    weight: str = ""
    dtype: str = "float32"
    compile: str = "none"
    compile_seconds: float | None = None


@dataclass(frozen=True)
class Outcome:
    """An estimate beside what it really took."""

    seconds: float | None
    estimated_seconds: float | None
    memory_bytes: float | None
    estimated_memory_bytes: float | None


def history(runs: Sequence[Run]) -> list[Measured]:
    """The measurements in finished runs of this machine, as they come (newest first)."""
    here = (measured(run) for run in runs if _made_here(run))
    return [one for one in here if one is not None]


def _made_here(run: Run) -> bool:
    """Whether this machine made it: its name, and its torch, since many machines share a name."""
    packages = run.config.get("packages")
    torch = packages.get("torch") if isinstance(packages, dict) else None
    return run.status.get("host") == socket.gethostname() and torch in (None, _torch_version())


@cache
def _torch_version() -> str | None:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def measured(run: Run, *, cores: int | None = None) -> Measured | None:
    """What a run took, or None if it is unfinished or says nothing of it.

    ``cores``: those of the CPU it ran on, if it was not this one.
    """
    metrics = run.metrics or {}
    cost = metrics.get("cost") if run.state == "done" else None
    if not isinstance(cost, dict) or cost.get("shared_device"):
        return None  # with other work on the device its seconds say nothing
    seconds, tokens = cost.get("seconds"), cost.get("computed_tokens")
    if not seconds or not tokens or seconds < SHORTEST_SECONDS:
        return None
    settings, device = run.settings, kind_of(str(cost.get("device") or "cpu"))
    trained = run.config.get("kind") == "finetune"
    dtype, work = str(run.config.get("dtype") or "float32"), work_of(run)
    shape, mode = shape_of(run.model), mode_of(settings) if trained else "none"
    ratio = before = None
    if mode != "none":
        pace = paced(run)
        before = pace and pace.before
        seconds = pace and pace.step_seconds * work.steps
    if shape is not None and seconds:
        given = settings.get("micro_tokens" if trained else "batch_tokens")
        ratio = seconds / seconds_of(
            shape,
            work,
            rates_of(device, cores or os.cpu_count() or 1),
            BYTES.get(dtype, 4),
            at_once=given if isinstance(given, int) else None,
            n_devices=1 if device == "cpu" else int(cost.get("processes") or 1),
            training=training_of(settings) if trained else None,
        )
    return Measured(
        run=run.id,
        kind="finetune" if trained else "eval",
        model=run.model,
        device=device,
        ratio=ratio,
        memory_bytes=peak_of(cost),
        weight=f"{settings.get('method')} {settings.get('objective')}" if trained else "",
        dtype=dtype,
        compile=mode,
        compile_seconds=before,
    )


def work_of(run: Run) -> Work:
    """What a finished run computed, as it says."""
    settings, metrics = run.settings, run.metrics or {}
    cost = metrics.get("cost") or {}
    tokens = cost.get("computed_tokens") or 0
    if run.config.get("kind") != "finetune":
        return Work(metrics.get("n_items") or 0, tokens, cost.get("continuation_tokens") or tokens)
    steps = int(settings.get("steps") or 1)
    return Work(
        steps * int(settings.get("batch_samples") or 1),
        tokens,
        float(metrics.get("loss_tokens") or tokens / 3),
        steps,
    )


def training_of(settings: dict[str, Any]) -> Training:
    """What of a fine-tune's recorded settings changes its cost."""
    anchor = bool(settings.get("causal_anchor"))
    return Training(
        full=settings.get("method") != "lora",
        lora_rank=int(settings.get("lora_rank") or 8),
        teacher=anchor or settings.get("objective") == "distill",
        anchor=anchor,
        recompute=bool(settings.get("gradient_checkpointing")),
        launches=launches_left(mode_of(settings)),
    )


def start_seconds(jobs: Sequence[Job]) -> float | None:
    """The median of what earlier jobs needed besides computing, or None without any."""
    spent = []
    for job in jobs[:20]:
        path = job.run_path
        if job.stored_state != "done" or job.attempt > 1 or job.words[0] != "eval" or path is None:
            continue
        cost = (Run(path).metrics or {}).get("cost") or {}
        if job.seconds is not None and cost.get("seconds"):
            spent.append(max(0.0, job.seconds - cost["seconds"]))
    return statistics.median(spent) if spent else None


def outcome(job: Job) -> Outcome | None:
    """The estimate of a finished job beside what it took; None for an unfinished or resumed one."""
    if job.state != "done" or job.attempt > 1:
        return None
    peaks = [peak_of((Run(path).metrics or {}).get("cost") or {}) for path in job.run_paths]
    return Outcome(
        seconds=job.seconds,
        estimated_seconds=job.estimate.get("seconds"),
        memory_bytes=max((peak for peak in peaks if peak), default=None),
        estimated_memory_bytes=job.estimate.get("memory_bytes"),
    )


def peak_of(cost: dict[str, Any]) -> int | None:
    """GPU memory where there is a GPU, else what the process held."""
    peak = cost.get("peak_memory_bytes")
    if isinstance(peak, dict):
        return peak.get("device") or peak.get("host")
    return cost.get("peak_bytes")


def kind_of(device: str) -> str:
    """cpu, mps or gpu, from a device's name here or in a record."""
    return device if device in ("cpu", "mps") else "gpu"
