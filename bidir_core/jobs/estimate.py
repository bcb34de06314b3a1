"""How long a command will take and how much memory, before it is started.

The cost model (:mod:`bidir_core.jobs.cost_model`) counts operations and bytes from the model's shape.
What earlier runs on this machine really took corrects it, as soon as there are some; without them
stated assumptions stand in, with a wide range. Nothing here loads a model, or torch;
:func:`outcome` says afterwards how good an estimate was.
"""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from bidir_core import jobs
from bidir_core.common.errors import UserError
from bidir_core.common.launch import launched
from bidir_core.evaluate.config import EvalConfig
from bidir_core.explain.sweep_points import (
    Condition,
    LabConfig,
    Point,
    Sweep,
    condition_of,
    control_points,
    expand,
    lay_out,
)
from bidir_core.jobs.cost_model import (
    BYTES,
    Measured,
    Rates,
    Shape,
    Training,
    Work,
    compiling,
    evaluation_bytes,
    evaluation_work,
    flex_remark,
    history,
    kind_of,
    rates_of,
    seconds_of,
    shape_of,
    start_seconds,
    training_bytes,
    training_of,
    training_work,
)
from bidir_core.runs.find import list_runs
from bidir_core.runs.layout import runs_roots

if TYPE_CHECKING:
    from bidir_core.jobs.pipeline_config import PipelineConfig, Stage
    from bidir_core.train.config import FinetuneConfig

PROGRAM_BYTES = 1.0e9  # Python, torch and activations

START_SECONDS = 15.0  # imports, weights and the mask probe


@dataclass(frozen=True)
class Estimate:
    """Seconds with their likely range, bytes, and the reasons. None where nothing is known.

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
    measured: bool = False
    n_devices: int = 1

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "basis": list(self.basis)}


def estimate(
    config: EvalConfig | FinetuneConfig | PipelineConfig,
    device: str,
    known: Sequence[Measured] = (),
    *,
    start: float | None = None,
    n_devices: int = 1,
    sharded: bool = False,
    cores: int | None = None,
    stages: Sequence[Stage] | None = None,
    work: Work | None = None,
) -> Estimate:
    """Estimate one command. ``device`` as :func:`bidir_core.jobs.queue_device` names it.

    ``known``: see :func:`history`. ``start``: seconds before computing begins, if known.
    ``sharded``: the weights of a fine-tune are spread over the devices (FSDP). ``cores``: a CPU's,
    if not this machine's. ``stages``: of a pipeline, those that are left (None: all). ``work``: what an
    evaluation computes, where that is known better than from its configuration.
    """
    place = Place(device, known, n_devices, sharded, cores)
    name = type(config).__name__
    if name == "PipelineConfig":
        made = _pipeline(config, place, stages)  # type: ignore[arg-type]
    elif name == "FinetuneConfig":
        made = _finetune(config, place)  # type: ignore[arg-type]
    else:
        assert isinstance(config, EvalConfig)
        made = _evaluation(config, place, work)
    return _with_start(made, start)


def of_tokens(
    model: str,
    device: str,
    n_tokens: float,
    known: Sequence[Measured] = (),
    *,
    start: float | None = None,
) -> Estimate:
    """Estimate a command that scores so many tokens of a single item."""
    work = Work(1, n_tokens, n_tokens)
    return _with_start(_scoring(model, work, Place(device, known), "auto", None, ()), start)


def _evaluation(config: EvalConfig, place: Place, known: Work | None = None) -> Estimate:
    work, remarks = evaluation_work(config)
    work = known or work
    remarks = (*remarks, flex_remark(config.attn, place.kind))
    return _scoring(config.model, work, place, config.dtype, config.batch_tokens, remarks)


def _scoring(
    model: str,
    work: Work,
    place: Place,
    dtype: str,
    batch_tokens: int | None,
    remarks: tuple[str, ...],
) -> Estimate:
    shape, dtype = shape_of(model), place.dtype(dtype)
    if shape is None:
        return _unknown(model, place, work, remarks)
    width, rates = BYTES.get(dtype, 4), place.rates
    seconds = seconds_of(
        shape, work, rates, width, at_once=batch_tokens, n_devices=place.sharing
    )  # fmt: skip
    factor, spread, why = correction("eval", model, place, dtype)
    memory, how = peak_before("eval", model, place, dtype, "")
    if memory is None:
        memory = evaluation_bytes(shape, work, rates, width, at_once=batch_tokens)
        how = f"memory: {width} bytes a weight, the logits of a batch, and the program"
    return _made(
        seconds * factor, spread, memory, work, place, (*_size(model, shape), why, how, *remarks)
    )


def _finetune(config: FinetuneConfig, place: Place) -> Estimate:
    work = training_work(config)
    shape, dtype = shape_of(config.model), place.dtype(config.dtype)
    if shape is None:
        return _unknown(config.model, place, work, ())
    training = replace(training_of(asdict(config)), sharded=place.sharded)
    width, rates = BYTES.get(dtype, 4), place.rates
    weight = f"{config.method} {config.objective}"
    more = compiling(config.compile, place.spent_compiling(config.compile))
    seconds = seconds_of(
        shape, work, rates, width,
        at_once=config.micro_tokens, n_devices=place.sharing, training=training,
    )  # fmt: skip
    factor, spread, why = correction("finetune", config.model, place, dtype, weight, config.compile)
    seconds *= factor
    reasons = [*_size(config.model, shape), why, f"{work.length:.0f} tokens a sample assumed"]
    if config.eval_every:
        asked = EvalConfig(model=config.model, limit=config.eval_items, dtype=dtype)
        times = 2 * (1 + -(-config.steps // config.eval_every))
        seconds += times * (_evaluation(asked, place._replace(n_devices=1)).seconds or 0.0)
        reasons.append(f"{times} quick evaluations included")
    reasons += [more.why, flex_remark(config.attn, place.kind, config.compile)]
    memory, how = peak_before("finetune", config.model, place, dtype, weight, config.compile)
    if memory is None:
        memory = training_bytes(
            shape, work, rates, width, training,
            at_once=config.micro_tokens, n_devices=place.n_devices,
        )  # fmt: skip
        how = _training_memory(training, width)
        if not training.recompute:
            less = training_bytes(
                shape, work, rates, width, replace(training, recompute=True),
                at_once=config.micro_tokens, n_devices=place.n_devices,
            )  # fmt: skip
            how += f"; with --gradient-checkpointing about {less / 1e9:.1f} GB"
    made = _made(seconds, spread, memory, work, place, (*reasons, how))
    return _later(made, more.usual, more.low, more.high)


def _training_memory(training: Training, width: int) -> str:
    each = 16 if width == 4 else 16 + 2 * width
    held = f"{each} bytes a weight" if training.full else f"{width} bytes a weight, an adapter"
    spread = ", spread over the devices" if training.sharded else ""
    teacher = ", the base model" if training.teacher else ""
    return f"memory: {held}{spread}{teacher}, and what a batch leaves for its backward pass"


def _pipeline(config: PipelineConfig, place: Place, left: Sequence[Stage] | None) -> Estimate:
    from bidir_core.jobs.pipeline_config import plan

    planned = plan(config)
    stages = planned if left is None else left
    which = "; finished ones are used again"
    if len(stages) < len(planned):
        which = f" left of {len(planned)}, unfinished ones counted whole"
    parts = [
        _finetune(stage.config, place)  # type: ignore[arg-type]
        if stage.trains
        else _evaluation(stage.config, place)  # type: ignore[arg-type]
        for stage in stages
    ]
    known_all = all(part.seconds is not None for part in parts)
    evaluated = (p for s, p in zip(stages, parts, strict=True) if not s.trains)
    reasons, trained = next(evaluated, parts[0]).basis, ""
    if known_all:
        reasons = (f"the sum of {len(parts)} stages{which}", *reasons)
        trained = next((p.basis[1] for s, p in zip(stages, parts, strict=True) if s.trains), "")

    def total(name: str) -> float | None:
        return sum(getattr(part, name) for part in parts) if known_all else None

    return Estimate(
        total("seconds"), total("low_seconds"), total("high_seconds"),
        max((p.memory_bytes for p in parts if p.memory_bytes), default=None),
        sum(p.n_items for s, p in zip(stages, parts, strict=True) if not s.trains),
        sum(p.n_tokens for p in parts), place.device,
        tuple(dict.fromkeys(filter(None, (*reasons, trained and f"training: {trained}")))),
        measured=all(part.measured for part in parts), n_devices=place.n_devices,
    )  # fmt: skip


def _size(model: str, shape: Shape) -> tuple[str, ...]:
    known = f", from {shape.source}" if shape.source else ""
    return (f"{shape.parameters / 1e6:,.0f} million weights{known}",)


def _made(
    seconds: float, spread: float, memory: float, work: Work, place: Place, basis: tuple[str, ...]
) -> Estimate:
    shared: tuple[str, ...] = ()
    if place.n_devices > 1:
        shared = (
            ("processes on one CPU share its cores: no faster, and each takes its own memory",)
            if place.kind == "cpu"
            else (f"shared by {place.n_devices} GPUs; no more than two have been measured",)
        )
    return Estimate(
        seconds, seconds / spread, seconds * spread, memory, work.items, work.tokens, place.device,
        tuple(filter(None, (*basis, *shared))),
        measured=spread == MEASURED_SPREAD, n_devices=place.n_devices,
    )  # fmt: skip


def _with_start(made: Estimate, start: float | None) -> Estimate:
    seconds = START_SECONDS if start is None else start
    later = _later(made, seconds, seconds / 2, seconds * 2)
    if later is made or start == 0.0:
        return later
    note = f"{seconds:.0f} s to start, load and probe included"
    return replace(later, basis=(*made.basis, note))


def _later(made: Estimate, usual: float, low: float, high: float) -> Estimate:
    """With so many seconds more before computing; itself where nothing is known."""
    if made.seconds is None or made.low_seconds is None or made.high_seconds is None:
        return made
    return replace(
        made,
        seconds=made.seconds + usual,
        low_seconds=made.low_seconds + low,
        high_seconds=made.high_seconds + high,
    )


def _unknown(model: str, place: Place, work: Work, remarks: tuple[str, ...]) -> Estimate:
    why = f"the size of '{model}' is neither in its name nor in a folder here"
    return Estimate(
        None, None, None, None, work.items, work.tokens, place.device,
        tuple(filter(None, (why, *remarks))),
        n_devices=place.n_devices,
    )  # fmt: skip


# ``--estimate``: what a command would take, printed instead of being done.

NEWEST_RUNS = 200  # older ones say little about this machine now


def estimated(config: Any, n_devices: int = 0, stages: Sequence[Stage] | None = None) -> Estimate:
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
        start=start_seconds(jobs.list_jobs()),
        n_devices=n_devices,
        sharded=wants_sharding(),
        stages=stages,
    )


def wants_sharding() -> bool:
    """Whether ``accelerate launch`` was asked for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def to_text(found: Estimate, config: Any) -> str:
    """The estimate as lines for a terminal; one line where nothing is known."""
    if found.seconds is None:
        return f"time and memory are not known: {found.basis[0]}"
    unit = "samples" if hasattr(config, "objective") else "items"
    place = found.device if found.n_devices == 1 else f"{found.n_devices} x {found.device[:4]}"
    place = place.removesuffix(":")
    each = "" if found.n_devices == 1 else " on each"
    lines = [
        f"{config.model}: {found.n_items:,} {unit}, {tokens(found.n_tokens)} tokens, {place}",
        f"time    about {duration(found.seconds)} "
        f"({duration(found.low_seconds)} to {duration(found.high_seconds)})",
        f"memory  about {(found.memory_bytes or 0) / 1e9:.1f} GB{each}",
        "from",
        *(f"  {reason}" for reason in found.basis),
    ]
    return "\n".join(lines)


def duration(seconds: float | None) -> str:
    """Without false precision: seconds, minutes or hours."""
    seconds = seconds or 0.0
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def tokens(n: float) -> str:
    return f"{n / 1e6:.1f} million" if n >= 1e6 else f"{round(n, -3 if n > 5000 else 0):,.0f}"


# Where a command will run, and what earlier runs there say of it.

MEASURED_SPREAD, SCALED_SPREAD, ASSUMED_SPREAD = 1.3, 2.0, 3.0

NEWEST = 5  # runs that are asked


class Place(NamedTuple):
    """Where it will run, and what is known of that place."""

    device: str
    known: Sequence[Measured]
    n_devices: int = 1
    sharded: bool = False
    cores: int | None = None  # None: this machine's

    @property
    def kind(self) -> str:
        return kind_of(self.device)

    @property
    def rates(self) -> Rates:
        return rates_of(self.kind, self.cores or os.cpu_count() or 1)

    @property
    def sharing(self) -> int:
        """Among how many the computing is divided: processes on a CPU share its cores anyway."""
        return 1 if self.kind == "cpu" else self.n_devices

    def dtype(self, asked: str) -> str:
        return ("bfloat16" if self.kind == "gpu" else "float32") if asked == "auto" else asked

    def spent_compiling(self, mode: str) -> list[float]:
        """Seconds that compiled runs spent beside their steps, newest first."""
        mine = (m for m in self.known if m.device == self.kind and m.compile == mode)
        return [m.compile_seconds for m in mine if m.compile_seconds is not None][:NEWEST]


def correction(
    kind: str, model: str, place: Place, dtype: str, weight: str = "", compile: str = "none"
) -> tuple[float, float, str]:
    """By what to multiply the model's seconds, how far off it may be, and where it comes from.

    Runs that were compiled say nothing of plain ones, nor the other way round.
    """
    here = [m for m in place.known if m.device == place.kind and m.ratio]
    same = [m for m in here if (m.kind, m.dtype, m.compile) == (kind, dtype, compile)]
    wanted = [
        ([m for m in same if (m.model, m.weight) == (model, weight)], MEASURED_SPREAD, "this model"),
        ([m for m in same if m.model == model], SCALED_SPREAD, "another objective"),
        ([m for m in same if m.model != model], SCALED_SPREAD, "other models"),
        ([m for m in here if m.kind == "eval"], SCALED_SPREAD, "evaluations"),
    ]  # fmt: skip
    for found, spread, what in wanted:
        if found:
            ratio = statistics.median(m.ratio for m in found[:NEWEST] if m.ratio)
            n = len(found[:NEWEST])
            how = "" if compile == "none" or found[0].kind == "eval" else " compiled alike"
            return ratio, spread, f"speed: measured here, {n} run{'s'[: n > 1]} of {what}{how}"
    rate = place.rates.flops[BYTES.get(dtype, 4)]
    of = "" if place.kind == "cpu" else f" ({place.rates.what})"
    why = f"speed: assumed, {rate / 1e12:g} TFLOP/s{of}; no run on this machine has measured it yet"
    return 1.0, ASSUMED_SPREAD, why


def peak_before(
    kind: str, model: str, place: Place, dtype: str, weight: str, compile: str = "none"
) -> tuple[float | None, str]:
    """The most that earlier runs of the same work took; of one device only."""
    wanted = (kind, model, place.kind, weight, dtype, compile)
    peaks = [
        m.memory_bytes
        for m in place.known
        if (m.kind, m.model, m.device, m.weight, m.dtype, m.compile) == wanted and m.memory_bytes
    ]
    if not peaks or place.sharded:
        return None, ""
    return max(peaks), "memory: the most an earlier run of this model took"


# What a sweep will take, before it is started: how many points, and how long each.

_FAMILIES = ("windows:", "prefixes", "suffixes")

_ANY = 10_000  # layers of a model whose number does not matter

POINT_SECONDS = 2.0  # the mask probe and the files of each point


@dataclass(frozen=True)
class SweepEstimate(Estimate):
    """The whole sweep's estimate, and what one point of it takes. None where unknown."""

    n_points: int | None = None
    point_seconds: float | None = None


def layers_of(model: str) -> int | None:
    """How many layers a model has, from its name or its files on this machine; None without them."""
    shape = shape_of(model)
    return None if shape is None or shape.guessed else shape.layers


def planned_points(config: LabConfig, n_layers: int | None) -> list[Point] | None:
    """The points that :func:`bidir_core.explain.sweep.run_lab` would run, at most: controls with a BOS
    token or a chat template fall away for a model that has none. None if the layers are needed
    and not known. UserError for layers the model does not have."""
    if n_layers is None:
        if any(map(_asks_for_layers, config.sweeps)):
            return None
        n_layers = _ANY
    usual = condition_of(config)
    return lay_out(usual, expand(config.sweeps, n_layers), _controls(usual, config.controls))


def _asks_for_layers(sweep: Sweep) -> bool:
    axes = (axis for product in sweep.products for axis in product if axis.dial == "layers")
    return any(value.startswith(_FAMILIES) for axis in axes for value in axis.values)


def _controls(usual: Condition, wanted: bool) -> list[Point]:
    if not wanted:
        return []
    others = usual._replace(bos="add"), usual._replace(chat_template=not usual.chat_template)
    return control_points(usual, 2, others)


def estimate_sweep(
    config: LabConfig, device: str, known: Sequence[Measured] = (), *, start: float | None = None
) -> SweepEstimate:
    """The sum over the points; the model is loaded once, and probed at each of them.

    UserError for layers the model does not have.
    """

    def point(begin: float | None = 0.0, **changes: Any) -> Estimate:
        return estimate(config.evaluation(**changes), device, known, start=begin)

    points = planned_points(config, layers_of(config.model))
    full, bare, first = point(), point(context="none"), point(start)
    each = None if full.seconds is None else full.seconds + POINT_SECONDS
    if points is None:
        why = (
            "how many points there are follows from the model's number of layers, which is known "
            "once the model is on this machine"
        )
        unknown = replace(full, seconds=None, low_seconds=None, high_seconds=None)
        return _sweep(replace(unknown, basis=(why, *full.basis)), None, each)
    n_bare = sum(point.condition.context == "none" != config.context for point in points)
    n_full = len(points) - n_bare

    def total(name: str, share: float) -> float | None:
        """The start, each point's items, and each point's probe, as wide as its own guess."""
        ends = [getattr(one, name) for one in (first, full, bare)]
        if None in ends:
            return None
        begun, items, few = ends
        return begun - items + n_full * items + n_bare * few + len(points) * POINT_SECONDS * share

    whole = replace(
        first,
        seconds=total("seconds", 1),
        low_seconds=total("low_seconds", 0.5),
        high_seconds=total("high_seconds", 2),
        n_items=n_full * full.n_items + n_bare * bare.n_items,
        n_tokens=n_full * full.n_tokens + n_bare * bare.n_tokens,
    )
    return _sweep(whole, len(points), each)


def _sweep(made: Estimate, n_points: int | None, point_seconds: float | None) -> SweepEstimate:
    values = {spec.name: getattr(made, spec.name) for spec in fields(Estimate)}
    return SweepEstimate(**values, n_points=n_points, point_seconds=point_seconds)
