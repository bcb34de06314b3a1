"""How long a command will take and how much memory, before it is started.

Operations are counted (:mod:`bidir_core.jobs.cost_model`) and divided by the rate that finished runs
reached on this machine. Predicting each of those runs from the others shows how far off that is: the
range. Without any, a command line times one layer for a second (:func:`bidir_core.jobs.doctor.layer_rate`);
the app, which never loads torch, says that the time is not measured yet, and has a process do so when asked.
"""

from __future__ import annotations

import math
import re
import socket
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from bidir_core import jobs
from bidir_core.common.errors import UserError
from bidir_core.common.process import launched, package_versions
from bidir_core.evaluate.config import EvalConfig
from bidir_core.explain.sweep_points import LabConfig, planned_points
from bidir_core.jobs.cost_model import (
    Shape,
    Work,
    bytes_needed,
    kind_of,
    operations,
    shape_of,
    work_of,
)
from bidir_core.jobs.job import Job
from bidir_core.jobs.pipeline_config import PipelineConfig, Stage, plan
from bidir_core.runs.find import list_runs
from bidir_core.runs.layout import runs_roots
from bidir_core.runs.run import Run, peak_of
from bidir_core.train.config import FinetuneConfig

NEWEST = 5  # finished runs whose rates are used
NEWEST_RUNS = 200  # older ones say little about this machine now

SHORTEST_SECONDS = 0.2  # below it a run says nothing about a rate

Config = EvalConfig | FinetuneConfig | PipelineConfig | LabConfig
# Operations a second of a shape on a device in a dtype, timed now; None where that cannot be tried.
LayerRate = Callable[[Shape, str, str], float | None]


@dataclass(frozen=True)
class Estimate:
    """Seconds with their range, bytes, and the reasons. None where nothing is known.

    ``memory_bytes`` are of each device; ``n_devices`` share the work. A sweep has ``n_points``,
    each of ``point_seconds``.
    """

    seconds: float | None
    low_seconds: float | None
    high_seconds: float | None
    memory_bytes: float | None
    n_items: int
    n_tokens: float
    device: str
    basis: tuple[str, ...] = ()
    n_devices: int = 1
    n_points: int | None = None
    point_seconds: float | None = None


class Place(NamedTuple):
    """Where it will run, and what is known of that place."""

    device: str
    known: Sequence[Measured] = ()
    n_devices: int = 1
    layer_rate: LayerRate | None = None


def estimate(
    config: Config,
    device: str,
    known: Sequence[Measured] = (),
    *,
    start: float | None = None,
    n_devices: int = 1,
    stages: Sequence[Stage] | None = None,
    layer_rate: LayerRate | None = None,
    work: Work | None = None,
) -> Estimate:
    """Estimate one command. ``device`` as :func:`bidir_core.jobs.queue_device` names it.

    ``known``: see :func:`history`. ``start``: seconds before computing
    begins, if known. ``stages``: of a pipeline, those that are left (None: all). ``layer_rate``:
    asked where no run is known. ``work``: of an evaluation whose items need not be counted.
    UserError for a sweep over layers that the model does not have.
    """
    place = Place(device, known, n_devices, layer_rate)
    overhead = "starting and loading"
    if isinstance(config, LabConfig):
        result = _sweep(config, place)
    elif isinstance(config, EvalConfig):
        result = _single(config, place, work)
    else:
        overhead = "starting, loading and preparing its data"
        if isinstance(config, FinetuneConfig):
            result = _finetune(config, place)
        else:
            result = _pipeline(config, place, stages)
    if result.seconds is None:
        return result
    if start is None:
        reason = f"{overhead} come on top, not measured here yet"
        return replace(result, basis=(*result.basis, reason))
    start_part = Estimate(start, start, start, 0.0, 0, 0.0, device)
    reason = f"{start:.0f} s for {overhead}, as earlier jobs took"
    return _sum([(1, result), (1, replace(start_part, basis=(reason,)))])


def _single(
    config: EvalConfig | FinetuneConfig, place: Place, work: Work | None = None
) -> Estimate:
    """Scoring a configuration's items, or training on its samples."""
    try:
        work = work or work_of(config)
        remark = work.remark
    except UserError as error:
        remark = str(error)
    n_items, n_tokens = (work.items, work.tokens) if work else (0, 0.0)
    result = Estimate(None, None, None, None, n_items, n_tokens, place.device)
    result = replace(result, n_devices=place.n_devices)
    shape, kind = shape_of(config.model), kind_of(place.device)
    if shape is None:
        reason = f"the size of '{config.model}' is neither in its name nor in a folder here"
        return replace(result, basis=(reason,))
    tune, at_once = None, config.batch_tokens if isinstance(config, EvalConfig) else None
    if isinstance(config, FinetuneConfig):
        tune, at_once = asdict(config), config.micro_tokens
    dtype = config.dtype
    if dtype == "auto":
        dtype = "bfloat16" if kind == "gpu" else "float32"
    work_kind = kind_of_work(tune or {})
    measured = [m for m in place.known if (m.device, m.dtype) == (kind, dtype)]
    same_runs = [m for m in measured if (m.work, m.model) == (work_kind, config.model)]
    memory: float | None = max((m.memory_bytes for m in same_runs if m.memory_bytes), default=None)
    memory_from = "memory: the most an earlier run of this model took"
    if memory is None:
        memory = bytes_needed(shape, work, kind, dtype, tune, at_once)
        memory_from = "memory: weights, the logits of a batch, and the program"
        if tune is not None:
            memory_from = "memory: weights, gradients and moments, and a batch's saved activations"
        if tune is not None and not tune["gradient_checkpointing"]:
            checkpointed = {**tune, "gradient_checkpointing": True}
            n_bytes = bytes_needed(shape, work, kind, dtype, checkpointed, at_once)
            memory_from += f"; with --gradient-checkpointing about {n_bytes / 1e9:.1f} GB"
    speed = _speed(work_kind, config.model, dtype, shape, measured, place)
    if speed.rate is not None and work is not None:
        # Processes on a CPU share its cores.
        sharing = 1 if kind == "cpu" else place.n_devices
        seconds = operations(shape, work, tune) / speed.rate / sharing
        low, high = (None if ratio is None else seconds * ratio for ratio in speed.ratios)
        result = replace(result, seconds=seconds, low_seconds=low, high_seconds=high)
    source = f", from {shape.source}" if shape.source else ""
    weights = f"{shape.parameters / 1e6:,.0f} million weights{source}"
    basis = [weights, speed.why, remark, memory_from]
    if place.n_devices > 1:
        basis.append(
            "processes on one CPU share its cores: no faster, and each takes its own memory"
            if kind == "cpu"
            else f"shared by {place.n_devices} GPUs, each with the whole model; what they exchange "
            "is not counted"
        )
    return replace(result, memory_bytes=memory, basis=tuple(filter(None, basis)))


NO_SPEED = "speed: not measured yet"  # in the reasons where the time is not known


class Speed(NamedTuple):
    """Operations a second; a run's time over the predicted one, at least and at most; and the source."""

    rate: float | None
    why: str
    ratios: tuple[float | None, float | None] = (None, None)


def _speed(
    work: str, model: str, dtype: str, shape: Shape, measured: Sequence[Measured], place: Place
) -> Speed:
    """What finished runs most like this one reached; else a layer timed now; else nothing."""
    measured = [m for m in measured if m.rate]
    same_work = [m for m in measured if m.work == work]
    of_model = [m for m in same_work if m.model == model]
    rates = [m.rate for m in (of_model or same_work or measured)[:NEWEST] if m.rate]
    if not rates:
        rate = place.layer_rate and place.layer_rate(shape, place.device, dtype)
        if rate is None:
            return Speed(None, f"{NO_SPEED} on {place.device}: no run has finished here")
        why = "speed: one layer of this width timed here just now"
        return Speed(rate, f"{why}; how far off that is, is not known yet")
    whose = "this model" if of_model else "other models" if same_work else "other work"
    why = f"speed: measured here, {len(rates)} run{'s' if len(rates) > 1 else ''} of {whose}"
    rate = statistics.median(rates)
    if len(rates) < 2 or not same_work:
        return Speed(rate, f"{why}; how far off that is, is not known yet")
    # The time each run took over the time that the others predict for it.
    ratios = [statistics.median(rates[:i] + rates[i + 1 :]) / r for i, r in enumerate(rates)]
    why += f", which took {min(ratios):.2f} to {max(ratios):.2f} times what the others say of them"
    return Speed(rate, why, (min(1.0, *ratios), max(1.0, *ratios)))


def _finetune(config: FinetuneConfig, place: Place) -> Estimate:
    result = _single(config, place)
    kind = kind_of_work(asdict(config))
    if config.compile != "none" and not any(m.work == kind for m in place.known):
        reason = "compiling comes on top: no run here has measured it"
        result = replace(result, basis=(*result.basis, reason))
    if not config.eval_every or result.seconds is None:
        return result
    quick_config = EvalConfig(model=config.model, limit=config.eval_items, dtype=config.dtype)
    evaluation = replace(
        _single(quick_config, place._replace(n_devices=1)), n_items=0, n_tokens=0.0
    )
    n_evaluations = 2 * (1 + math.ceil(config.steps / config.eval_every))
    evaluation = replace(evaluation, basis=(f"{n_evaluations} quick evaluations included",))
    return _sum([(1, result), (n_evaluations, evaluation)])


def _pipeline(config: PipelineConfig, place: Place, remaining: Sequence[Stage] | None) -> Estimate:
    planned = plan(config)
    stages = planned if remaining is None else remaining
    parts = []
    for stage in stages:
        if isinstance(stage.config, FinetuneConfig):
            training = _finetune(stage.config, place)
            reasons = tuple(f"training: {reason}" for reason in training.basis)
            parts.append((1, replace(training, n_items=0, basis=reasons)))
        else:
            parts.append((1, _single(stage.config, place)))
    if parts[0][1].memory_bytes is None:
        return parts[0][1]
    remark = "; finished ones are used again"
    if len(stages) < len(planned):
        remark = f" left of {len(planned)}, unfinished ones counted whole"
    total = _sum(parts)
    return replace(total, basis=(f"the sum of {len(parts)} stages{remark}", *total.basis))


def _sweep(config: LabConfig, place: Place) -> Estimate:
    """The sum over its points; the model is loaded once."""
    points = planned_points(config, layers_of(config.model))
    per_point = _single(config.evaluation(), place)
    if points is None:
        reason = (
            "how many points there are follows from the model's number of layers, which is known "
            "once the model is on this machine"
        )
        unknown = replace(per_point, seconds=None, low_seconds=None, high_seconds=None)
        return replace(unknown, basis=(reason, *per_point.basis), point_seconds=per_point.seconds)
    prompts = Counter((point.condition.context, point.condition.repeat_prompt) for point in points)
    parts = [
        (n, _single(config.evaluation(context=context, repeat_prompt=times), place))
        for (context, times), n in prompts.items()
    ]
    basis = (*per_point.basis, "the mask probe of each point comes on top")
    if config.preset:
        basis += ("so does what unlabelled prompts predict, unless that is stored already",)
    total = _sum(parts)
    return replace(total, basis=basis, n_points=len(points), point_seconds=per_point.seconds)


def _sum(parts: Sequence[tuple[int, Estimate]]) -> Estimate:
    """The sum of estimates, each taken so many times; None where one of them is not known."""

    def total(name: str) -> Any:
        values = [(n, getattr(part, name)) for n, part in parts]
        return None if any(v is None for _, v in values) else sum(n * v for n, v in values)

    names = ("seconds", "low_seconds", "high_seconds", "n_items", "n_tokens")
    peaks = [part.memory_bytes for _, part in parts if part.memory_bytes]
    reasons = dict.fromkeys(why for _, part in parts for why in part.basis)
    return replace(
        parts[0][1],
        **{name: total(name) for name in names},
        memory_bytes=max(peaks, default=None),
        basis=tuple(reasons),
    )


def layers_of(model: str) -> int | None:
    """How many layers a model has, from its name or its files on this machine; None without them."""
    shape = shape_of(model)
    return None if shape is None or shape.guessed else shape.layers


# What finished runs and jobs really took, on the machine where they ran.


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


# ``--estimate``: what a command would take, printed instead of being done.


def estimated(
    config: Config,
    n_devices: int = 0,
    stages: Sequence[Stage] | None = None,
    layer_rate: LayerRate | None = None,
) -> Estimate:
    """The estimate on this machine, by what its finished runs and jobs say.

    0 devices: as many as there are processes in this launch. ``stages``: of a pipeline, those left.
    """
    n_devices = n_devices or launched()
    if n_devices < 1:
        raise UserError(f"--estimate {n_devices}: give a number of devices from 1 up")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", config.device):
        raise UserError(f"device '{config.device}' is not one; use auto, cpu, cuda, cuda:1 or mps")
    roots = [config.runs_dir] if config.runs_dir else runs_roots()
    return estimate(
        config,
        jobs.queue_device(["--device", config.device]),
        history([run for run in list_runs(roots) if run.state == "done"][:NEWEST_RUNS]),
        start=start_of(config, jobs.list_jobs()),
        n_devices=n_devices,
        stages=stages,
        layer_rate=layer_rate,
    )


def start_of(config: object, known: Sequence[jobs.Job]) -> float | None:
    """What earlier jobs of this kind took before they computed; for a pipeline, what fine-tunes took,
    whose data takes longest to prepare."""
    trains = isinstance(config, FinetuneConfig | PipelineConfig)
    return start_seconds(known, "finetune" if trains else "eval")


def to_text(result: Estimate, config: Config) -> str:
    """The estimate as lines for a terminal; one line where nothing is known."""
    if result.memory_bytes is None:
        return f"time and memory are not known: {result.basis[0]}"
    unit = "samples" if isinstance(config, FinetuneConfig) else "items"
    place, suffix = result.device, ""
    if result.n_devices > 1:
        place, suffix = f"{result.n_devices} x {result.device.partition(':')[0]}", " on each"
    lines = [
        f"{config.model}: {result.n_items:,} {unit}, {tokens(result.n_tokens)} tokens, {place}",
        f"time    {time_text(result)}",
        f"memory  about {result.memory_bytes / 1e9:.1f} GB{suffix}",
        "from",
        *(f"  {reason}" for reason in result.basis),
    ]
    return "\n".join(lines)


def time_text(result: Estimate) -> str:
    """``about 5 min (4 min to 7 min)``, without the range where none is known."""
    if result.seconds is None:
        unmeasured = any(NO_SPEED in why for why in result.basis)
        return "not measured yet on this machine" if unmeasured else "not known"
    text = f"about {duration(result.seconds)}"
    if result.low_seconds is None or result.high_seconds is None:
        return text
    return f"{text} ({duration(result.low_seconds)} to {duration(result.high_seconds)})"


def duration(seconds: float) -> str:
    """Without false precision: seconds, minutes, hours or days."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{round(hours / 24)} days"


def tokens(n: float) -> str:
    return f"{n / 1e6:.1f} million" if n >= 1e6 else f"{round(n, -3 if n > 5000 else 0):,.0f}"
