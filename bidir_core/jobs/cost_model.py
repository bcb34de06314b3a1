"""The cost model: seconds and bytes from a model's shape, the work, and a device's rates.

Seconds of an evaluation, or of one process's share of it:

    operations / rate  +  forward passes x layers x seconds a layer  +  items x seconds an item

A weight costs two operations a token; the head only where something is predicted; attention four
operations a layer for each hidden number and key. Small models on a GPU wait for the launch of many
small kernels, hence the second term, and records are made by Python, hence the third. A training
step is the same with a backward pass (two forwards), and one forward more for a teacher.

Bytes: weights, gradients and moments, and what a batch leaves behind for its backward pass: about 14
hidden and 4 intermediate numbers a layer and token, with another 12 bytes a hidden number where
norms compute in float32.
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bidir_core.common.errors import UserError
from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.evaluate.config import EvalConfig
from bidir_core.jobs import Job
from bidir_core.models.weight_files import read_tensors
from bidir_core.runs.curve import read_curve
from bidir_core.runs.run import Run

if TYPE_CHECKING:
    from bidir_core.train.config import FinetuneConfig

GB = 1e9


@dataclass(frozen=True)
class Rates:
    """What a kind of device does, where no run on this machine has said otherwise.

    ``flops``: useful operations a second by bytes a number takes. ``layer_seconds``: the least
    time of one layer's forward pass, however small. ``batch_tokens`` and ``micro_tokens``: what
    ``auto`` means. ``logit_bytes``: float32 copies of logits made at once.
    """

    what: str
    flops: dict[int, float]
    layer_seconds: float
    item_seconds: float
    batch_tokens: int
    micro_tokens: int
    logit_bytes: float
    program_bytes: float


# Fitted to the committed runs, see docs/SCALING.md. A core: two virtual ones of a Xeon, shared.
CORE_FLOPS = 40e9

GPU = Rates(
    "one H100", {4: 50e12, 2: 400e12, 1: 400e12}, 1.6e-3, 0.35e-3, 32_768, 32_768, 2 * GB, 0.5 * GB
)

MPS = Rates(
    "an Apple GPU", {4: 3e12, 2: 3e12, 1: 3e12}, 1e-3, 0.35e-3, 8192, 8192, 0.5 * GB, GB
)  # not measured

# Seconds that gradients take between GPUs: bytes a second, not measured.
LINK_BYTES = 50e9


def rates_of(device: str, cores: int) -> Rates:
    """The rates assumed for ``cpu``, ``mps`` or ``gpu``."""
    if device == "mps":
        return MPS
    if device != "cpu":
        return GPU
    flops = CORE_FLOPS * cores
    return Rates(
        f"{cores} cores", {4: flops, 2: flops, 1: flops}, 0.0, 0.35e-3, 1024, 2048, 0.1 * GB, GB
    )


@dataclass(frozen=True)
class Work:
    """What is computed: items (or samples), tokens, and how many of those predict something.

    ``steps``: optimizer steps; 0 is an evaluation.
    """

    items: int
    tokens: float
    predicted: float
    steps: int = 0

    @property
    def length(self) -> float:
        """Tokens that stand together, on average: what attention is computed over."""
        return self.tokens / self.items if self.items else 0.0


@dataclass(frozen=True)
class Training:
    """What of a fine-tune changes its cost."""

    full: bool = True
    lora_rank: int = 8
    teacher: bool = False  # the base model's predictions are needed
    anchor: bool = False  # a second pass of the student
    recompute: bool = False  # gradient checkpointing
    sharded: bool = False  # FSDP
    launches: float = 1.0  # the share of them left where a step is recorded and replayed

    @property
    def forwards(self) -> float:
        """Passes, counted in forward passes: a backward one is two."""
        each = 4.0 if self.recompute else 3.0
        return each * (2 if self.anchor else 1) + (1.0 if self.teacher else 0.0)

    def trained(self, shape: Shape) -> float:
        """How many weights the optimizer has."""
        if self.full:
            return shape.parameters
        return shape.layers * self.lora_rank * (8 * shape.hidden + 3 * shape.intermediate)


def seconds_of(
    shape: Shape,
    work: Work,
    rates: Rates,
    width: int,
    *,
    at_once: int | None = None,
    n_devices: int = 1,
    training: Training | None = None,
) -> float:
    """Seconds of computing, start-up not included. ``width``: bytes a number takes."""
    per_token = 2 * shape.body + 4 * shape.layers * shape.hidden * work.length
    operations = per_token * work.tokens + 2 * shape.head * work.predicted
    if training is None:
        passes = math.ceil(work.tokens / (at_once or rates.batch_tokens)) / n_devices
        launches = math.ceil(passes) * shape.layers * rates.layer_seconds
        spent = work.items * rates.item_seconds / n_devices
        return operations / rates.flops[width] / n_devices + launches + spent
    a_step = work.tokens / work.steps / n_devices
    passes = work.steps * math.ceil(a_step / (at_once or rates.micro_tokens))
    launches = passes * training.forwards * shape.layers * rates.layer_seconds * training.launches
    computing = training.forwards * operations / rates.flops[width] / n_devices
    exchanged = 0.0
    if n_devices > 1:
        # A ring moves each gradient twice; FSDP gathers the weights twice a pass besides.
        moved = 2 * 4 * training.trained(shape)
        moved += passes / work.steps * 2 * width * shape.parameters if training.sharded else 0
        exchanged = work.steps * moved * (n_devices - 1) / n_devices / LINK_BYTES
    return computing + launches + exchanged


def evaluation_bytes(
    shape: Shape, work: Work, rates: Rates, width: int, *, at_once: int | None = None
) -> float:
    """Bytes a device holds at most in an evaluation."""
    batch = min(at_once or rates.batch_tokens, work.tokens)
    predicted = batch * (work.predicted / work.tokens if work.tokens else 1.0)
    logits = predicted * shape.vocabulary
    return (
        shape.parameters * width
        + logits * width
        + min(rates.logit_bytes, 8 * logits)
        + batch * _saved(shape, width)
        + rates.program_bytes
    )


def training_bytes(
    shape: Shape,
    work: Work,
    rates: Rates,
    width: int,
    training: Training,
    *,
    at_once: int | None = None,
    n_devices: int = 1,
) -> float:
    """Bytes a device holds at most in a fine-tune."""
    trained = training.trained(shape)
    # float32: weight, gradient, two moments. Narrower: the same, the rounded weight and gradient.
    held = 16 * trained if width == 4 else (16 + 2 * width) * trained
    frozen = 0.0 if training.full else shape.parameters * width
    frozen += shape.parameters * width if training.teacher else 0.0
    if training.sharded:
        # One layer and the embeddings are whole at a time.
        whole = (shape.body / shape.layers + shape.head) * width * 2
        held, frozen = held / n_devices, frozen / n_devices + whole
    batch = min(at_once or rates.micro_tokens, work.tokens / work.steps / n_devices)
    layers = 1 + shape.layers * (shape.hidden * width / _saved(shape, width))
    saved = batch * _saved(shape, width) * (layers if training.recompute else shape.layers)
    logits = batch * work.predicted / work.tokens * shape.vocabulary
    copies = (width + 12) * (2 if training.teacher else 1)
    return held + frozen + saved + min(logits * copies, 3 * rates.logit_bytes) + rates.program_bytes


def _saved(shape: Shape, width: int) -> float:
    """Bytes that a token leaves in one layer."""
    upcast = 12 * shape.hidden if width < 4 else 0
    return (14 * shape.hidden + 4 * shape.intermediate) * width + upcast


# ``--compile`` and ``--attn flex``: what compiling adds before the work keeps its pace.


class Compiling(NamedTuple):
    """Seconds, and how few or many they may be."""

    usual: float
    low: float
    high: float
    why: str = ""


NOTHING = Compiling(0.0, 0.0, 0.0)

# Usual: the median of the eleven compiled fine-tunes in benchmarks/timed_runs (135M, H200). Low:
# the one of them that found the kernels of an earlier process. High: 3.43 B with flex, two steps of warm-up
# included (docs/PERFORMANCE.md).
ASSUMED = Compiling(
    7.0,
    0.7,
    44.0,
    "compiling: 7 s assumed (0.7 to 44 s were seen on GPUs), part of it once a shape",
)

# On a GPU flex compiles its kernel without --compile, too. How long by itself nobody has measured.
FLEX_ALONE = "attention flex: compiled on a GPU at its first use, which comes on top (not measured)"

FLEX_AND_MORE = (
    "attention flex: compiled as well (44 s in all were seen at 3.43 B, warm-up included)"
)

# Launches that are left where a step is recorded and replayed: of 126 ms a step 48.5 are, of which
# 16 are computing (docs/PERFORMANCE.md; 135M, one H100).
REPLAYED = 0.25


class Paced(NamedTuple):
    """``step_seconds`` of steps once they keep their pace; ``before``: what went beside them."""

    step_seconds: float
    before: float


def mode_of(settings: Mapping[str, Any]) -> str:
    """none, default or reduce-overhead, from recorded settings; older ones hold a bool."""
    value = settings.get("compile") or "none"
    return "default" if value is True else str(value)


def launches_left(mode: str) -> float:
    """The share of a step's launches that still take their time."""
    return REPLAYED if mode == "reduce-overhead" else 1.0


def paced(run: Run) -> Paced | None:
    """From a fine-tune's curve; None where it has under two lines of training."""
    try:
        lines = [one for one in read_curve(run.path) if "loss" in one]
        ends = [(int(one["step"]), float(one["seconds"])) for one in lines]
    except (KeyError, TypeError, ValueError):
        return None
    if len(ends) < 2 or ends[-1][0] <= ends[0][0]:
        return None
    (first, begun), (last, done) = ends[0], ends[-1]
    each = (done - begun) / (last - first)
    return Paced(each, max(0.0, begun - first * each)) if each > 0 else None


def flex_remark(attn: str, kind: str, mode: str = "none") -> str:
    """What an estimate on such a device doesn't count of ``--attn``; empty where it counts all."""
    if attn != "flex" or kind != "gpu":
        return ""
    return FLEX_ALONE if mode == "none" else FLEX_AND_MORE


def compiling(mode: str, before: Sequence[float]) -> Compiling:
    """What to add for ``mode``; ``before``: what compiled runs on this machine took."""
    if mode == "none":
        return NOTHING
    if not before:
        return ASSUMED
    usual, n = statistics.median(before), len(before)
    why = f"compiling: {usual:.1f} s, measured here, {n} run{'s'[: n > 1]}"
    return Compiling(usual, min(before) / 2, max(before) * 2, why)


# What finished runs really took: it corrects the cost model, on the machine where they ran.

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


# The shape of a model, as far as it can be known without its weights: what costs are made of.


@dataclass(frozen=True)
class Shape:
    """A decoder's size. ``parameters``: all weights of its text side, embeddings included."""

    parameters: float
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    tied: bool = True
    source: str = ""  # where it is known from
    guessed: bool = False  # all but the number of weights is

    @property
    def head(self) -> float:
        """Weights of the output head: used for every token that is predicted."""
        return float(self.vocabulary * self.hidden)

    @property
    def body(self) -> float:
        """Weights that every token passes: all but the embeddings, which are looked up."""
        return max(self.parameters - self.head * (1 if self.tied else 2), self.parameters / 3)


def _shape(config: Mapping[str, Any], source: str) -> Shape:
    """From a ``config.json``'s values, the parameters counted. KeyError where one is missing."""
    text = config.get("text_config") or config
    hidden = _first(text, "hidden_size", "n_embd")
    layers = _first(text, "num_hidden_layers", "n_layer")
    heads = _first(text, "num_attention_heads", "n_head")
    intermediate = text.get("intermediate_size") or text.get("n_inner") or 4 * hidden
    vocabulary = text["vocab_size"]
    tied = bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", True)))
    size = text.get("head_dim") or hidden // heads
    key_values = text.get("num_key_value_heads") or heads
    each = 2 * hidden * size * (heads + key_values) + 3 * hidden * intermediate + 2 * hidden
    total = vocabulary * hidden * (1 if tied else 2) + layers * each + hidden
    return Shape(total, layers, hidden, intermediate, vocabulary, tied, source)


def _first(text: Mapping[str, Any], *names: str) -> int:
    return next(int(text[name]) for name in names if text.get(name))


# The embedded models exactly; Ministral 3 as its configuration has it, without the vision tower.
KNOWN = {
    EMBEDDED_MODEL: Shape(134_515_008, 30, 576, 1536, 49_152),
    "gemma3-270m": Shape(268_098_176, 18, 640, 2048, 262_144),
    "mistralai/Ministral-3-3B-Instruct-2512": Shape(3_429_006_336, 26, 3072, 9216, 131_072),
}

KNOWN["mistralai/Ministral-3-3B-Instruct-2512-BF16"] = KNOWN[
    "mistralai/Ministral-3-3B-Instruct-2512"
]


def shape_of(model: str) -> Shape | None:
    """What is known of a model: by name, from its folder, the hub's cache, or the size in its name.

    A size alone is filled up with the proportions that decoders of that size have.
    """
    if model in KNOWN:
        return KNOWN[model]
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _of_folder(folder)
    cached = _cached_config(model)
    if cached is not None:
        try:
            return _shape(cached, "its configuration in the hub's cache")
        except (KeyError, StopIteration, TypeError, ValueError):
            pass
    size = _size_in(model)
    return _guessed(size, "the size in its name") if size else None


def parameters_of(model: str) -> float | None:
    """How many weights a model has, or None; see :func:`shape_of`."""
    shape = shape_of(model)
    return shape.parameters if shape else None


def _of_folder(folder: Path) -> Shape | None:
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("snapshots/*/*.safetensors"))
    counted = 0
    for file in files:
        try:
            counted += sum(
                _numel(tensor.shape) for tensor in read_tensors(file) if "vision" not in tensor.name
            )
        except UserError:
            return None
    configs = [folder / "config.json", *sorted(folder.glob("snapshots/*/config.json"))]
    for path in configs:
        try:
            shape = _shape(json.loads(path.read_text(encoding="utf-8")), "its configuration")
        except (OSError, ValueError, KeyError, StopIteration, TypeError, AttributeError):
            continue
        if not counted:
            return shape
        return Shape(**{**vars(shape), "parameters": counted, "source": "its files"})
    return _guessed(counted, "its files") if counted else None


def _numel(shape: tuple[int, ...]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n


def _cached_config(model: str) -> dict[str, Any] | None:
    """A hub model's configuration if it has been downloaded before; asks no network."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(model, "config.json")
        return json.loads(Path(path).read_text(encoding="utf-8")) if isinstance(path, str) else None
    except (HFValidationError, OSError, ValueError):
        return None


def _size_in(name: str) -> float | None:
    sizes = re.findall(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([bBmM])(?![A-Za-z0-9])", name)
    if not sizes:
        return None
    number, unit = sizes[-1]
    return float(number) * (1e9 if unit in "bB" else 1e6)


def _guessed(parameters: float, source: str) -> Shape:
    """The usual proportions: about 115 hidden numbers a layer, and 12 hidden^2 weights in each."""
    hidden = round((parameters * 115 / 12) ** (1 / 3))
    layers = max(2, round(hidden / 115))
    vocabulary = int(min(131_072, parameters / 3 / max(hidden, 1)))
    return Shape(parameters, layers, hidden, 3 * hidden, vocabulary, True, source, True)


# How much there is to compute: counted from a configuration, before any item is read.


class Size(NamedTuple):
    """Validation items in a row that are alike, and what one of them has on average, in tokens."""

    items: int
    context: float  # one of its contexts, or all of them where they differ
    continuations: float  # all together: what is predicted
    computed: float  # what goes through the model: what choices share goes once


# With SmolLM2's tokenizer, counted from evaluations; a limit takes the first items. HellaSwag's
# first ones are from one source, whose texts are short.
TASK_SIZES: dict[str, tuple[Size, ...]] = {
    "hellaswag": (Size(3_243, 29, 55, 79), Size(6_799, 59, 149, 203)),
    "piqa": (Size(1_838, 13, 46, 49),),
    "arc_easy": (Size(570, 27, 17, 39),),
    "arc_challenge": (Size(299, 31, 23, 47),),
    "winogrande": (Size(1_267, 34, 11, 43),),
}

CHARACTERS_PER_TOKEN = 4.0

# Of the embedded training mixtures at 512 tokens at most: prompt and response, and its response.
SAMPLE_TOKENS, RESPONSE_SHARE = 147.0, 0.31


def workload(config: EvalConfig) -> tuple[int, float, tuple[str, ...]]:
    """Items, tokens to compute, and remarks about what had to be guessed."""
    work, remarks = evaluation_work(config)
    return work.items, work.tokens, remarks


def evaluation_work(config: EvalConfig) -> tuple[Work, tuple[str, ...]]:
    """The same, with how many of the tokens predict something."""
    n_items, n_tokens, predicted, remarks = 0, 0.0, 0.0, []
    for task in config.tasks:
        sizes = TASK_SIZES.get(task) or _own_lines(task)
        if sizes is None:
            remarks.append(f"{task}: unknown size, left out")
            continue
        left = config.limit or sum(size.items for size in sizes)
        for size in sizes:
            count = min(left, size.items // 2 if config.fold != "all" else size.items)
            left -= count
            # In place of one context: none at all, or examples and context so often.
            contexts = (1 + config.num_fewshot) * config.repeat_prompt
            more = 1 - size.context if config.context == "none" else size.context * (contexts - 1)
            n_items += count
            n_tokens += count * (size.computed + more)
            predicted += count * size.continuations
    if config.split != "validation":
        remarks.append(f"the size of '{config.split}' is taken to be validation's")
    return Work(n_items, n_tokens, predicted), tuple(remarks)


def _own_lines(task: str) -> tuple[Size, ...] | None:
    """Items and mean tokens of a JSONL file, from its length in bytes."""
    try:
        with open(Path(task).expanduser(), "rb") as file:
            lengths = [len(line) for line in file if line.strip()]
    except OSError:
        return None
    if not lengths:
        return None
    tokens = sum(lengths) / len(lengths) / CHARACTERS_PER_TOKEN
    return (Size(len(lengths), tokens, tokens / 3, tokens),)


def training_work(config: FinetuneConfig) -> Work:
    """Samples, tokens and steps of a fine-tune."""
    n_samples = config.steps * config.batch_samples
    own = _own_lines(config.data)
    length = min(own[0].computed if own else SAMPLE_TOKENS, config.max_tokens * 0.6)
    return Work(
        n_samples, n_samples * length, n_samples * length * RESPONSE_SHARE, config.steps
    )  # fmt: skip
