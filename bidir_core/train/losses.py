"""One micro-batch through the model: the loss terms of each pass, and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

from bidir_core.regimes import CAUSAL, Regime
from bidir_core.train.config import Objective
from bidir_core.train.packing import IGNORED, TrainBatch
from bidir_core.train.student import Student, within


class Pass(NamedTuple):
    """One forward pass of the student: under which regime, with which weight in the loss."""

    name: str  # "loss" or "anchor"
    regime: Regime
    weight: float
    from_base: bool  # KL from the base model's causal predictions, else cross entropy


def passes(objective: Objective, regime: Regime, causal_anchor: float) -> list[Pass]:
    main = Pass("loss", regime, 1.0, objective.distils)
    if causal_anchor == 0:
        return [main]
    return [main, Pass("anchor", CAUSAL, causal_anchor, True)]


def loss_terms(
    student: Student,
    batch: TrainBatch,
    plan: list[Pass],
    base: Student | None = None,
) -> Iterator[tuple[Pass, torch.Tensor]]:
    """Per pass, the loss of every predicted token: float32 ``[n_loss]``, in ``batch.head``'s order.

    The regime stays in force until the next pass is asked for, so backward belongs in the loop's
    body: gradient checkpointing recomputes layers there, and must meet the same mask.
    """
    base_hidden = _base_hidden(base, batch) if any(pass_.from_base for pass_ in plan) else None
    for pass_ in plan:
        with student.handle.use(pass_.regime, batch.layout):
            work = partial(_losses, student, batch, pass_, base, base_hidden)
            yield pass_, within(student.model, work)


def _losses(
    student: Student,
    batch: TrainBatch,
    pass_: Pass,
    base: Student | None,
    base_hidden: torch.Tensor | None,
) -> torch.Tensor:
    hidden = student.hidden(batch)
    if not pass_.from_base:

        def ce(hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return cross_entropy(student.logits(hidden), target)

        return in_chunks(ce, student.vocabulary, hidden, batch.target)
    assert base is not None
    assert base_hidden is not None

    def kl(hidden: torch.Tensor, base_hidden: torch.Tensor) -> torch.Tensor:
        return kl_from_base(base.logits(base_hidden), student.logits(hidden))

    losses = in_chunks(kl, student.vocabulary, hidden, base_hidden)
    return torch.where(batch.target == IGNORED, 0.0, losses)


@torch.no_grad()
def _base_hidden(base: Student | None, batch: TrainBatch) -> torch.Tensor:
    if base is None:
        raise ValueError("this loss needs the base model")
    with base.handle.use(CAUSAL, batch.layout):
        return within(base.model, partial(base.hidden, batch))


HEAD_CHUNK_BYTES = {"cpu": 1 << 29, "cuda": 1 << 31}  # float32 logits of one chunk


def cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """``-log p(target)`` per position, 0 where the target is ``IGNORED``."""
    return torch.nn.functional.cross_entropy(
        logits.float(), target, ignore_index=IGNORED, reduction="none"
    )


def kl_from_base(base_logits: torch.Tensor, student_logits: torch.Tensor) -> torch.Tensor:
    """``KL(base || student)`` per position: sum over tokens of p_base (log p_base - log p_student).

    Forward KL (Hinton et al. 2015, temperature 1): zero exactly where both agree; the student pays
    for whatever the base model finds likely and it does not. No gradient flows into the base.
    """
    base = base_logits.detach().float().log_softmax(-1)
    student = student_logits.float().log_softmax(-1)
    return (base.exp() * (base - student)).sum(-1)


def in_chunks(
    loss: Callable[..., torch.Tensor], vocabulary: int, *per_position: torch.Tensor
) -> torch.Tensor:
    """``loss`` over tensors ``[n, ..]``, some positions at a time: float32 ``[n]``.

    Logits of a chunk live only while its loss is computed; the backward pass computes them again,
    so that the head never holds ``n x vocabulary`` numbers.
    """
    n = len(per_position[0])
    most = HEAD_CHUNK_BYTES.get(per_position[0].device.type, 1 << 29)
    size = max(1, most // (4 * vocabulary))
    if n <= size:
        return loss(*per_position)
    chunks = zip(*(tensor.split(size) for tensor in per_position))
    return torch.cat(
        # Nothing in a loss is random: there is no state to put back.
        [
            checkpoint(loss, *chunk, use_reentrant=False, preserve_rng_state=False)  # type: ignore[misc]
            for chunk in chunks
        ]
    )
