"""How long a command will take and how much memory, before it is started.

The cost model (:mod:`bidir_core.estimate_cost`) counts operations and bytes from the model's shape.
What earlier runs on this machine really took corrects it, as soon as there are some; without them
stated assumptions stand in, with a wide range. Nothing here loads a model, or torch;
:func:`outcome` says afterwards how good an estimate was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from bidir_core.config import EvalConfig
from bidir_core.estimate_compile import compiling, flex_remark
from bidir_core.estimate_correction import MEASURED_SPREAD, Place, correction, peak_before
from bidir_core.estimate_cost import (
    Training,
    Work,
    evaluation_bytes,
    seconds_of,
    training_bytes,
)
from bidir_core.estimate_history import (
    BYTES,
    Measured,
    Outcome,
    history,
    outcome,
    start_seconds,
    training_of,
)
from bidir_core.estimate_shape import Shape, parameters_of, shape_of
from bidir_core.estimate_work import evaluation_work, training_work, workload

if TYPE_CHECKING:
    from bidir_core.pipeline_config import PipelineConfig, Stage
    from bidir_core.training.config import FinetuneConfig

__all__ = [
    "PROGRAM_BYTES",
    "Estimate",
    "Measured",
    "Outcome",
    "estimate",
    "history",
    "of_tokens",
    "outcome",
    "parameters_of",
    "start_seconds",
    "workload",
]

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
    from bidir_core.pipeline_config import plan

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
