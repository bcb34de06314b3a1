"""How long a command will take and how much memory, before it is started.

Operations are counted (:mod:`bidir_core.jobs.cost_model`) and divided by the rate that finished runs
reached on this machine. Each of those runs, told from the others, says how far off that is: the
range. Without any, a command line times one layer for a second (:func:`bidir_core.jobs.doctor.layer_rate`);
the app, which never loads torch, says that the time is not known yet. :func:`bidir_core.jobs.history.outcome`
says afterwards how good an estimate was.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

from bidir_core import jobs
from bidir_core.common.errors import UserError
from bidir_core.common.launch import launched
from bidir_core.evaluate.config import EvalConfig
from bidir_core.explain.sweep_points import LabConfig, planned_points
from bidir_core.jobs.cost_model import (
    BYTES,
    Shape,
    Training,
    Work,
    evaluation_bytes,
    evaluation_work,
    kind_of,
    operations,
    shape_of,
    training_bytes,
    training_of,
    training_work,
)
from bidir_core.jobs.history import Measured, history, kind_of_work, start_seconds
from bidir_core.jobs.pipeline_config import PipelineConfig, Stage, plan
from bidir_core.runs.find import list_runs
from bidir_core.runs.layout import runs_roots
from bidir_core.train.config import FinetuneConfig

NEWEST = 5  # finished runs that are asked
NEWEST_RUNS = 200  # older ones say little about this machine now

# Operations a second of a shape on a device in a dtype, timed now; None where that cannot be tried.
LayerRate = Callable[[Shape, str, str], float | None]


@dataclass(frozen=True)
class Estimate:
    """Seconds with their range, bytes, and the reasons. None where nothing is known.

    ``memory_bytes`` are of each device; ``n_devices`` share the work.
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

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "basis": list(self.basis)}


class Place(NamedTuple):
    """Where it will run, and what is known of that place."""

    device: str
    known: Sequence[Measured] = ()
    n_devices: int = 1
    layer_rate: LayerRate | None = None

    @property
    def kind(self) -> str:
        return kind_of(self.device)

    @property
    def sharing(self) -> int:
        """Among how many the computing is divided: processes on a CPU share its cores anyway."""
        return 1 if self.kind == "cpu" else self.n_devices

    def dtype(self, asked: str) -> str:
        return ("bfloat16" if self.kind == "gpu" else "float32") if asked == "auto" else asked


def estimate(
    config: EvalConfig | FinetuneConfig | PipelineConfig,
    device: str,
    known: Sequence[Measured] = (),
    *,
    start: float | None = None,
    n_devices: int = 1,
    stages: Sequence[Stage] | None = None,
    layer_rate: LayerRate | None = None,
) -> Estimate:
    """Estimate one command. ``device`` as :func:`bidir_core.jobs.queue_device` names it.

    ``known``: see :func:`bidir_core.jobs.history.history`. ``start``: seconds before computing begins, if known. ``stages``:
    of a pipeline, those that are left (None: all). ``layer_rate``: asked where no run is known.
    """
    place = Place(device, known, n_devices, layer_rate)
    if isinstance(config, PipelineConfig):
        made = _pipeline(config, place, stages)
    elif isinstance(config, FinetuneConfig):
        made = _finetune(config, place)
    else:
        made = _evaluation(config, place)
    if isinstance(config, EvalConfig):
        return _with_start(made, start)
    return _with_start(made, start, "preparing its data")


def of_tokens(
    model: str,
    device: str,
    n_tokens: float,
    known: Sequence[Measured] = (),
    *,
    start: float | None = None,
) -> Estimate:
    """Estimate a command that scores so many tokens of a single item."""
    config, work = EvalConfig(model=model, tasks=()), Work(1, n_tokens, n_tokens)
    return _with_start(_scoring(config, work, "", Place(device, known)), start)


def _evaluation(config: EvalConfig, place: Place) -> Estimate:
    try:
        work = evaluation_work(config)
    except UserError as error:
        return _scoring(config, None, str(error), place)
    return _scoring(config, work, work.remark, place)


def _scoring(config: EvalConfig, work: Work | None, remark: str, place: Place) -> Estimate:
    shape, dtype = shape_of(config.model), place.dtype(config.dtype)
    if shape is None:
        return _unknown(config.model, work, place)
    width = BYTES.get(dtype, 4)
    told = _seconds("eval", config.model, dtype, place, shape, work)
    memory, how = _peak_before("eval", config.model, dtype, place)
    if memory is None:
        memory = evaluation_bytes(shape, work, place.kind, width, config.batch_tokens)
        how = f"memory: {width} bytes a weight, the logits of a batch, and the program"
    return _made(told, memory, work, place, shape, (remark, how))


def _finetune(config: FinetuneConfig, place: Place) -> Estimate:
    shape, dtype = shape_of(config.model), place.dtype(config.dtype)
    training, width = training_of(asdict(config)), BYTES.get(dtype, 4)
    try:
        work = training_work(config)
        remarks = [work.remark]
    except UserError as error:
        work, remarks = None, [str(error)]
    if shape is None:
        return _unknown(config.model, work, place)
    kind = kind_of_work(asdict(config))
    told = _seconds(kind, config.model, dtype, place, shape, work, training)
    if config.eval_every and told.seconds is not None:
        asked = EvalConfig(model=config.model, limit=config.eval_items, dtype=dtype)
        times = 2 * (1 + -(-config.steps // config.eval_every))
        each = _evaluation(asked, place._replace(n_devices=1))
        told = told.longer(each.seconds, each.low_seconds, each.high_seconds, times)
        remarks.append(f"{times} quick evaluations included")
    if config.compile != "none" and not any(one.work == kind for one in place.known):
        remarks.append("compiling comes on top: no run here has measured it")
    memory, how = _peak_before(kind, config.model, dtype, place)
    if memory is None:

        def needed(recompute: bool) -> float:
            how = replace(training, recompute=recompute)
            return training_bytes(shape, work, how, place.kind, width, config.micro_tokens)

        memory = needed(training.recompute)
        how = (
            "memory: weights, gradients and moments, and what a batch leaves for its backward pass"
        )
        if not training.recompute:
            how += f"; with --gradient-checkpointing about {needed(True) / 1e9:.1f} GB"
    return _made(told, memory, work, place, shape, (*remarks, how))


def _pipeline(config: PipelineConfig, place: Place, left: Sequence[Stage] | None) -> Estimate:
    planned = plan(config)
    stages = planned if left is None else left
    parts = [
        _finetune(stage.config, place)
        if isinstance(stage.config, FinetuneConfig)
        else _evaluation(stage.config, place)
        for stage in stages
    ]
    if parts[0].memory_bytes is None:
        return parts[0]
    which = "; finished ones are used again"
    if len(stages) < len(planned):
        which = f" left of {len(planned)}, unfinished ones counted whole"
    reasons = [f"the sum of {len(parts)} stages{which}"]
    for stage, part in zip(stages, parts, strict=True):
        reasons += [f"training: {why}" if stage.trains else why for why in part.basis]

    def total(name: str) -> float | None:
        values = [getattr(part, name) for part in parts]
        return None if None in values else sum(values)

    return Estimate(
        seconds=total("seconds"),
        low_seconds=total("low_seconds"),
        high_seconds=total("high_seconds"),
        memory_bytes=max((p.memory_bytes for p in parts if p.memory_bytes), default=None),
        n_items=sum(p.n_items for s, p in zip(stages, parts, strict=True) if not s.trains),
        n_tokens=sum(part.n_tokens for part in parts),
        device=place.device,
        basis=tuple(dict.fromkeys(reasons)),
        n_devices=place.n_devices,
    )


class Told(NamedTuple):
    """Seconds of computing with their range, and where they come from."""

    seconds: float | None
    low: float | None
    high: float | None
    why: str

    def longer(
        self, seconds: float | None, low: float | None, high: float | None, times: float = 1
    ) -> Told:
        """With so much more; an end that is not known of one is not known of both."""

        def total(mine: float | None, more: float | None) -> float | None:
            return None if mine is None or more is None else mine + times * more

        return Told(
            total(self.seconds, seconds), total(self.low, low), total(self.high, high), self.why
        )


def _seconds(
    kind: str,
    model: str,
    dtype: str,
    place: Place,
    shape: Shape,
    work: Work | None,
    training: Training | None = None,
) -> Told:
    """The operations over the rate of finished runs alike; else of a layer timed now; else None."""
    here = [m for m in place.known if (m.device, m.dtype) == (place.kind, dtype) and m.rate]
    same = [m for m in here if m.work == kind]
    of_model = [m for m in same if m.model == model]
    found, whose = of_model or same or here, "this model"
    if not of_model:
        whose = "other models" if same else "other work"
    rates = [m.rate for m in found[:NEWEST] if m.rate]
    if rates:
        s = "s" if len(rates) > 1 else ""
        why = f"speed: measured here, {len(rates)} run{s} of {whose}"
        rate = statistics.median(rates)
    else:
        timed = place.layer_rate(shape, place.device, dtype) if place.layer_rate else None
        if timed is None:
            why = f"speed: not known until a run has finished here on {place.device}"
            if place.layer_rate is None:
                why += " (--estimate in a terminal tries a layer)"
            return Told(None, None, None, why)
        rate, why = timed, "speed: one layer of this width timed here just now"
    if work is None:
        return Told(None, None, None, why)
    seconds = operations(shape, work, training) / rate / place.sharing
    if len(rates) < 2 or found is here:
        return Told(seconds, None, None, f"{why}; how far off that is, is not known yet")
    # Each run told from the others: what it took over what would have been said.
    off = [statistics.median(rates[:i] + rates[i + 1 :]) / rate for i, rate in enumerate(rates)]
    low, high = min(1.0, *off), max(1.0, *off)
    why += f", which took {min(off):.2f} to {max(off):.2f} times what the others say of them"
    return Told(seconds, seconds * low, seconds * high, why)


def _peak_before(work: str, model: str, dtype: str, place: Place) -> tuple[float | None, str]:
    """The most that earlier runs of the same work took."""
    wanted = (work, model, place.kind, dtype)
    peaks = [
        m.memory_bytes
        for m in place.known
        if (m.work, m.model, m.device, m.dtype) == wanted and m.memory_bytes
    ]
    if not peaks:
        return None, ""
    return max(peaks), "memory: the most an earlier run of this model took"


def _made(
    told: Told,
    memory: float,
    work: Work | None,
    place: Place,
    shape: Shape,
    remarks: Sequence[str],
) -> Estimate:
    source = f", from {shape.source}" if shape.source else ""
    basis = [f"{shape.parameters / 1e6:,.0f} million weights{source}", told.why, *remarks]
    if place.n_devices > 1 and place.kind == "cpu":
        basis.append(
            "processes on one CPU share its cores: no faster, and each takes its own memory"
        )
    elif place.n_devices > 1:
        basis.append(
            f"shared by {place.n_devices} GPUs, each with the whole model; what they exchange is "
            "not counted"
        )
    return Estimate(
        seconds=told.seconds,
        low_seconds=told.low,
        high_seconds=told.high,
        memory_bytes=memory,
        n_items=work.items if work else 0,
        n_tokens=work.tokens if work else 0.0,
        device=place.device,
        basis=tuple(filter(None, basis)),
        n_devices=place.n_devices,
    )


def _unknown(model: str, work: Work | None, place: Place) -> Estimate:
    why = f"the size of '{model}' is neither in its name nor in a folder here"
    n_items, n_tokens = (work.items, work.tokens) if work else (0, 0.0)
    return Estimate(
        None, None, None, None, n_items, n_tokens, place.device, (why,), place.n_devices
    )


def _with_start(made: Estimate, start: float | None, besides: str = "") -> Estimate:
    """With what comes before the computing; ``besides``: what it does there but load."""
    if made.seconds is None:
        return made
    what = f"starting, loading and {besides}" if besides else "starting and loading"
    if start is None:
        return replace(made, basis=(*made.basis, f"{what} come on top, not measured here yet"))
    told = Told(made.seconds, made.low_seconds, made.high_seconds, "").longer(start, start, start)
    return replace(
        made,
        seconds=told.seconds,
        low_seconds=told.low,
        high_seconds=told.high,
        basis=(*made.basis, f"{start:.0f} s for {what}, as earlier jobs took"),
    )


# ``--estimate``: what a command would take, printed instead of being done.


def estimated(
    config: EvalConfig | FinetuneConfig | PipelineConfig,
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
    """What earlier jobs of this kind took before they computed; of a pipeline its fine-tunes are
    asked, whose data takes longest to prepare."""
    trains = isinstance(config, FinetuneConfig | PipelineConfig)
    return start_seconds(known, "finetune" if trains else "eval")


def to_text(found: Estimate, config: EvalConfig | FinetuneConfig | PipelineConfig) -> str:
    """The estimate as lines for a terminal; one line where nothing is known."""
    if found.memory_bytes is None:
        return f"time and memory are not known: {found.basis[0]}"
    unit = "samples" if isinstance(config, FinetuneConfig) else "items"
    place, each = found.device, ""
    if found.n_devices > 1:
        place, each = f"{found.n_devices} x {found.device.partition(':')[0]}", " on each"
    lines = [
        f"{config.model}: {found.n_items:,} {unit}, {tokens(found.n_tokens)} tokens, {place}",
        f"time    {time_text(found)}",
        f"memory  about {found.memory_bytes / 1e9:.1f} GB{each}",
        "from",
        *(f"  {reason}" for reason in found.basis),
    ]
    return "\n".join(lines)


def time_text(found: Estimate) -> str:
    """``about 5 min (4 min to 7 min)``, without the range where none is known."""
    if found.seconds is None:
        return "not known"
    text = f"about {duration(found.seconds)}"
    if found.low_seconds is None or found.high_seconds is None:
        return text
    return f"{text} ({duration(found.low_seconds)} to {duration(found.high_seconds)})"


def duration(seconds: float) -> str:
    """Without false precision: seconds, minutes or hours."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def tokens(n: float) -> str:
    return f"{n / 1e6:.1f} million" if n >= 1e6 else f"{round(n, -3 if n > 5000 else 0):,.0f}"


# What a sweep will take: how many points, and how long each.


@dataclass(frozen=True)
class SweepEstimate(Estimate):
    """The whole sweep's estimate, and what one point of it takes. None where unknown."""

    n_points: int | None = None
    point_seconds: float | None = None


def layers_of(model: str) -> int | None:
    """How many layers a model has, from its name or its files on this machine; None without them."""
    shape = shape_of(model)
    return None if shape is None or shape.guessed else shape.layers


def estimate_sweep(
    config: LabConfig, device: str, known: Sequence[Measured] = (), *, start: float | None = None
) -> SweepEstimate:
    """The sum over the points; the model is loaded once. UserError for layers it does not have."""
    points, place = planned_points(config, layers_of(config.model)), Place(device, known)
    full = _evaluation(config.evaluation(), place)
    values = {spec.name: getattr(full, spec.name) for spec in fields(Estimate)}
    if points is None:
        why = (
            "how many points there are follows from the model's number of layers, which is known "
            "once the model is on this machine"
        )
        values |= {"seconds": None, "low_seconds": None, "high_seconds": None}
        return SweepEstimate(**{**values, "basis": (why, *full.basis)}, point_seconds=full.seconds)
    prompts = Counter((one.condition.context, one.condition.repeat_prompt) for one in points)
    parts = [
        (n, _evaluation(config.evaluation(context=context, repeat_prompt=times), place))
        for (context, times), n in prompts.items()
    ]
    for name in ("seconds", "low_seconds", "high_seconds", "n_items", "n_tokens"):
        each = [(n, getattr(part, name)) for n, part in parts]
        values[name] = None if None in [v for _, v in each] else sum(n * v for n, v in each)
    basis = (*full.basis, "the mask probe of each point comes on top")
    if config.preset:
        basis += ("so does what unlabelled prompts predict, unless that is stored already",)
    values["basis"] = basis
    whole = _with_start(Estimate(**values), start)
    values = {spec.name: getattr(whole, spec.name) for spec in fields(Estimate)}
    return SweepEstimate(**values, n_points=len(points), point_seconds=full.seconds)
