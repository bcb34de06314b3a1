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

import math
from dataclasses import dataclass

from bidir_core.estimate_shape import Shape

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
