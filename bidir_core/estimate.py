"""How long a command will take and how much memory, before it is started.

What earlier runs on this machine measured comes first: tokens per second, peak memory and start-up
time of the same kind of work, model and device. Without them stated assumptions stand in, with a
wide range. Nothing here loads a model; :func:`outcome` says afterwards how good an estimate was.
"""

from __future__ import annotations

import os
import re
import socket
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidir_core.config import EMBEDDED_MODEL, EvalConfig
from bidir_core.jobs import Job
from bidir_core.store import Run

if TYPE_CHECKING:
    from bidir_core.pipeline_config import PipelineConfig
    from bidir_core.training.config import FinetuneConfig

# Validation items of each built-in task, and what one takes to compute on average with SmolLM2's
# tokenizer: tokens of its context, and of all its continuations together.
TASK_SIZES: dict[str, tuple[int, float, float]] = {
    "hellaswag": (10_042, 50, 118),
    "piqa": (1_838, 13, 46),
    "arc_easy": (570, 27, 17),
    "arc_challenge": (299, 31, 23),
    "winogrande": (1_267, 34, 11),
}
EMBEDDED_PARAMETERS = {EMBEDDED_MODEL: 134_515_008, "gemma3-270m": 268_098_176}
CHARACTERS_PER_TOKEN = 4.0
SAMPLE_TOKENS = 120.0  # of the embedded training mixtures, prompt and response
# Useful operations per second where nothing was measured: one CPU core, one current GPU.
CORE_FLOPS, GPU_FLOPS = 40e9, 2e13
START_SECONDS = 15.0  # imports, weights and the mask probe
# A forward and a backward pass cost three forwards; a teacher one more.
TRAINING_FACTOR, TEACHER_FACTOR = 3.0, 4.0
PROGRAM_BYTES = 1.0e9  # Python, torch and activations
MEASURED_SPREAD, SCALED_SPREAD, ASSUMED_SPREAD = 1.3, 2.0, 3.0


@dataclass(frozen=True)
class Measured:
    """What one finished run on this machine took."""

    run: str
    kind: str  # eval or finetune
    model: str
    device: str
    tokens_per_second: float
    memory_bytes: int | None
    parameters: float | None
    weight: str = ""  # eval: compute is the same; finetune: full or lora, and the objective


@dataclass(frozen=True)
class Estimate:
    """Seconds with their likely range, bytes, and the reasons. None where nothing is known."""

    seconds: float | None
    low_seconds: float | None
    high_seconds: float | None
    memory_bytes: float | None
    n_items: int
    n_tokens: float
    device: str
    basis: tuple[str, ...] = ()
    measured: bool = False

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "basis": list(self.basis)}


@dataclass(frozen=True)
class Outcome:
    """An estimate beside what it really took."""

    seconds: float | None
    estimated_seconds: float | None
    memory_bytes: float | None
    estimated_memory_bytes: float | None


def history(runs: Sequence[Run]) -> list[Measured]:
    """The measurements in finished runs of this machine, as they come (newest first)."""
    found = []
    for run in runs:
        cost = (run.metrics or {}).get("cost") if run.state == "done" else None
        if not isinstance(cost, dict) or run.status.get("host") != socket.gethostname():
            continue
        seconds, tokens = cost.get("seconds"), cost.get("computed_tokens")
        if not seconds or not tokens or seconds < 0.2:
            continue
        settings = run.settings
        kind = "finetune" if run.config.get("kind") == "finetune" else "eval"
        found.append(
            Measured(
                run=run.id,
                kind=kind,
                model=run.model,
                device=_kind_of(str(cost.get("device") or "cpu")),
                tokens_per_second=tokens / seconds,
                memory_bytes=_peak(cost),
                parameters=parameters_of(run.model),
                weight=f"{settings.get('method')} {settings.get('objective')}"
                if kind == "finetune"
                else "",
            )
        )
    return found


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


def estimate(
    config: EvalConfig | FinetuneConfig | PipelineConfig,
    device: str,
    known: Sequence[Measured] = (),
    *,
    start: float | None = None,
) -> Estimate:
    """Estimate one command. ``device`` as :func:`bidir_core.jobs.queue_device` names it."""
    name = type(config).__name__
    if name == "PipelineConfig":
        return _pipeline(config, device, known, start)  # type: ignore[arg-type]
    if name == "FinetuneConfig":
        return _finetune(config, device, known, start)  # type: ignore[arg-type]
    assert isinstance(config, EvalConfig)
    return _evaluation(config, device, known, start)


def _evaluation(
    config: EvalConfig, device: str, known: Sequence[Measured], start: float | None
) -> Estimate:
    n_items, n_tokens, remarks = workload(config)
    rate = _rate("eval", config.model, device, known)
    if rate is None:
        return _unknown(config.model, device, n_items, n_tokens, remarks)
    tokens_per_second, spread, why = rate
    seconds = n_tokens / tokens_per_second
    parameters = parameters_of(config.model) or 0
    memory, how = _memory(config.model, device, known, "eval", "")
    if memory is None:
        width = 4 if config.dtype == "float32" or (config.dtype == "auto" and _slow(device)) else 2
        memory = parameters * width + PROGRAM_BYTES
        how = f"memory: {width} bytes a weight and {PROGRAM_BYTES / 1e9:.0f} GB for the rest"
    return _with_start(
        Estimate(
            seconds, seconds / spread, seconds * spread, memory, n_items, n_tokens, device,
            (why, how, *remarks), measured=spread == MEASURED_SPREAD,
        ), start,
    )  # fmt: skip


def of_tokens(
    model: str,
    device: str,
    n_tokens: float,
    known: Sequence[Measured] = (),
    *,
    start: float | None = None,
) -> Estimate:
    """Estimate a command that scores so many tokens of a single item."""
    rate = _rate("eval", model, device, known)
    if rate is None:
        return _unknown(model, device, 1, n_tokens, ())
    tokens_per_second, spread, why = rate
    seconds = n_tokens / tokens_per_second
    memory, how = _memory(model, device, known, "eval", "")
    reasons = (why, how) if how else (why,)
    return _with_start(
        Estimate(
            seconds, seconds / spread, seconds * spread, memory, 1, n_tokens, device, reasons,
            measured=spread == MEASURED_SPREAD,
        ), start,
    )  # fmt: skip


def workload(config: EvalConfig) -> tuple[int, float, tuple[str, ...]]:
    """Items, tokens to compute, and remarks about what had to be guessed."""
    n_items, n_tokens, remarks = 0, 0.0, []
    for task in config.tasks:
        size = TASK_SIZES.get(task) or _own_task(task)
        if size is None:
            remarks.append(f"{task}: unknown size, left out")
            continue
        count, prefix, continuation = size
        count = count // 2 if config.fold != "all" else count
        count = min(count, config.limit) if config.limit else count
        prefix = 1 if config.context == "none" else prefix * (1 + config.num_fewshot)
        n_items += count
        n_tokens += count * (prefix + continuation)
    if config.split != "validation":
        remarks.append(f"the size of '{config.split}' is taken to be validation's")
    return n_items, n_tokens, tuple(remarks)


def _own_task(task: str) -> tuple[int, float, float] | None:
    """Items and mean tokens of a JSONL file, from its length in bytes."""
    try:
        with open(Path(task).expanduser(), "rb") as file:
            sizes = [len(line) for line in file if line.strip()]
    except OSError:
        return None
    return (len(sizes), sum(sizes) / len(sizes) / CHARACTERS_PER_TOKEN, 0.0) if sizes else None


def _finetune(
    config: FinetuneConfig, device: str, known: Sequence[Measured], start: float | None
) -> Estimate:
    n_samples = config.steps * config.batch_samples
    n_tokens = n_samples * min(SAMPLE_TOKENS, config.max_tokens * 0.6)
    factor = TEACHER_FACTOR if config.needs_base else TRAINING_FACTOR
    factor *= 4 / 3 if config.gradient_checkpointing else 1
    kind = f"{config.method} {config.objective}"
    rate = _rate("finetune", config.model, device, known, kind, factor)
    if rate is None:
        return _unknown(config.model, device, n_samples, n_tokens, ())
    tokens_per_second, spread, why = rate
    seconds = n_tokens / tokens_per_second
    reasons = [why, f"{SAMPLE_TOKENS:.0f} tokens a sample assumed"]
    if config.eval_every:
        asked = EvalConfig(model=config.model, limit=config.eval_items)
        evaluated = _rate("eval", config.model, device, known)
        if evaluated is not None:
            times = 2 * (1 + config.steps // config.eval_every)
            seconds += times * workload(asked)[1] / evaluated[0]
            reasons.append(f"{times} quick evaluations included")
    memory, how = _memory(config.model, device, known, "finetune", kind)
    if memory is None:
        parameters = parameters_of(config.model) or 0
        # float32 master weights, gradients and two moments; a base model to teach beside them
        per_weight = (16 if config.method == "full" else 4) + (4 if config.needs_base else 0)
        memory = parameters * per_weight + 2 * PROGRAM_BYTES
        how = (
            f"memory: {per_weight} bytes a weight and {2 * PROGRAM_BYTES / 1e9:.0f} GB activations"
        )
    return _with_start(
        Estimate(
            seconds, seconds / spread, seconds * spread, memory, n_samples, n_tokens, device,
            (*reasons, how), measured=spread == MEASURED_SPREAD,
        ), start,
    )  # fmt: skip


def _pipeline(
    config: PipelineConfig, device: str, known: Sequence[Measured], start: float | None
) -> Estimate:
    from bidir_core.pipeline_config import plan

    stages = plan(config)
    parts = [estimate(stage.config, device, known, start=0.0) for stage in stages]
    reasons = (f"the sum of {len(parts)} stages; finished ones are used again", *parts[0].basis)
    trained = next((p.basis[0] for s, p in zip(stages, parts, strict=True) if s.trains), "")
    known_all = all(part.seconds is not None for part in parts)

    def total(name: str) -> float | None:
        return sum(getattr(part, name) for part in parts) if known_all else None

    return _with_start(
        Estimate(
            total("seconds"), total("low_seconds"), total("high_seconds"),
            max((p.memory_bytes for p in parts if p.memory_bytes), default=None),
            sum(p.n_items for s, p in zip(stages, parts, strict=True) if not s.trains),
            sum(p.n_tokens for p in parts), device,
            tuple(dict.fromkeys(filter(None, (*reasons, f"training: {trained}")))),
            measured=all(part.measured for part in parts),
        ), start,
    )  # fmt: skip


def outcome(job: Job) -> Outcome | None:
    """The estimate of a finished job beside what it took; None for an unfinished or resumed one."""
    if job.state != "done" or job.attempt > 1:
        return None
    peaks = [_peak((Run(path).metrics or {}).get("cost") or {}) for path in job.run_paths]
    return Outcome(
        seconds=job.seconds,
        estimated_seconds=job.estimate.get("seconds"),
        memory_bytes=max((peak for peak in peaks if peak), default=None),
        estimated_memory_bytes=job.estimate.get("memory_bytes"),
    )


def parameters_of(model: str) -> float | None:
    """How many weights a model has: known, from its files, or from the size in its name."""
    if model in EMBEDDED_PARAMETERS:
        return EMBEDDED_PARAMETERS[model]
    folder = Path(model).expanduser()
    if folder.is_dir():
        n_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        try:
            config = (folder / "config.json").read_text(encoding="utf-8")
        except OSError:
            config = ""
        return n_bytes / (4 if '"float32"' in config else 2) if n_bytes else None
    sizes = re.findall(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([bBmM])(?![A-Za-z0-9])", model)
    if not sizes:
        return None
    number, unit = sizes[-1]
    return float(number) * (1e9 if unit in "bB" else 1e6)


def _rate(
    kind: str, model: str, device: str, known: Sequence[Measured], weight: str = "",
    factor: float = 1.0,
) -> tuple[float, float, str] | None:  # fmt: skip
    """Tokens per second, the factor by which it may be off, and where it comes from."""
    here = [one for one in known if one.device == _kind_of(device)]
    same = [m for m in here if (m.kind, m.model, m.weight) == (kind, model, weight)][:5]
    if same:
        speed = statistics.median(one.tokens_per_second for one in same)
        return speed, MEASURED_SPREAD, f"speed: measured here, {_runs(same)} of this model"
    parameters = parameters_of(model)
    near = [m for m in here if m.kind == kind and m.model == model]
    if near and kind == "finetune":
        speed = statistics.median(one.tokens_per_second for one in near[:5])
        return speed, SCALED_SPREAD, f"speed: from {_runs(near[:5])} with another objective"
    if parameters is None:
        return None
    other = [one for one in here if one.kind == "eval" and one.parameters][:5]
    if other:
        speed = statistics.median(
            one.tokens_per_second * one.parameters / parameters  # type: ignore[operator]
            for one in other
        )
        what = "evaluations" if kind == "finetune" else "other models"
        return speed / factor, SCALED_SPREAD, f"speed: scaled from {what} measured here"
    slow = _slow(device)
    flops = CORE_FLOPS * (os.cpu_count() or 1) if slow else GPU_FLOPS
    why = f"speed: assumed, {flops / 1e12:g} TFLOP/s; no run on this machine has measured it yet"
    return flops / (2 * parameters) / factor, ASSUMED_SPREAD, why


def _memory(
    model: str, device: str, known: Sequence[Measured], kind: str, weight: str
) -> tuple[float | None, str]:
    peaks = [
        one.memory_bytes
        for one in known
        if (one.kind, one.model, one.device, one.weight) == (kind, model, _kind_of(device), weight)
        and one.memory_bytes
    ]
    return (
        (max(peaks), "memory: the most an earlier run of this model took") if peaks else (None, "")
    )


def _with_start(made: Estimate, start: float | None) -> Estimate:
    if made.seconds is None or made.low_seconds is None or made.high_seconds is None:
        return made
    seconds = START_SECONDS if start is None else start
    note = () if start == 0.0 else (f"{seconds:.0f} s to start, load and probe included",)
    return replace(
        made,
        seconds=made.seconds + seconds,
        low_seconds=made.low_seconds + seconds / 2,
        high_seconds=made.high_seconds + seconds * 2,
        basis=(*made.basis, *note),
    )


def _unknown(
    model: str, device: str, n_items: int, n_tokens: float, remarks: tuple[str, ...]
) -> Estimate:
    why = f"the size of '{model}' is not in its name, and no run of it has finished here"
    return Estimate(None, None, None, None, n_items, n_tokens, device, (why, *remarks))


def _peak(cost: dict[str, Any]) -> int | None:
    """GPU memory where there is a GPU, else what the process held."""
    peak = cost.get("peak_memory_bytes")
    if isinstance(peak, dict):
        return peak.get("device") or peak.get("host")
    return cost.get("peak_bytes")


def _runs(measured: Sequence[Measured]) -> str:
    return f"{len(measured)} run{'s' if len(measured) > 1 else ''}"


def _kind_of(device: str) -> str:
    """cpu, mps or gpu, from a device's name here or in a record."""
    return device if device in ("cpu", "mps") else "gpu"


def _slow(device: str) -> bool:
    return _kind_of(device) == "cpu"
