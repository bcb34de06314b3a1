"""One micro-batch through the model: the loss terms of each pass, and their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch

from bidir_core.regimes import CAUSAL, Regime
from bidir_core.training.objectives import (
    Objective,
    cross_entropy,
    in_chunks,
    kl_from_base,
)
from bidir_core.training.packing import IGNORED, TrainBatch
from bidir_core.training.sharding import within
from bidir_core.training.student import Student


class Pass(NamedTuple):
    """One forward pass of the student: under which regime, with which weight in the loss."""

    name: str  # "loss" or "anchor"
    regime: Regime
    weight: float
    from_base: bool  # KL from the base model's causal predictions, else cross entropy


def passes(objective: Objective, regime: Regime, causal_anchor: float) -> list[Pass]:
    """The passes that make up the objective's loss."""
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
    base_hidden = _base_hidden(base, batch) if any(one.from_base for one in plan) else None
    for one in plan:
        with student.handle.use(one.regime, batch.layout):
            yield (
                one,
                within(student.model, partial(_losses, student, batch, one, base, base_hidden)),
            )


def _losses(
    student: Student,
    batch: TrainBatch,
    one: Pass,
    base: Student | None,
    base_hidden: torch.Tensor | None,
) -> torch.Tensor:
    hidden = student.hidden(batch)
    if not one.from_base:
        return in_chunks(_ce(student), student.vocabulary, hidden, batch.target)
    assert base is not None
    assert base_hidden is not None
    kl = in_chunks(_kl(student, base), student.vocabulary, hidden, base_hidden)
    return torch.where(batch.target == IGNORED, 0.0, kl)


@torch.no_grad()
def _base_hidden(base: Student | None, batch: TrainBatch) -> torch.Tensor:
    if base is None:
        raise ValueError("this loss needs the base model")
    with base.handle.use(CAUSAL, batch.layout):
        return within(base.model, partial(base.hidden, batch))


def _ce(student: Student):
    def loss(hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return cross_entropy(student.logits(hidden), target)

    return loss


def _kl(student: Student, base: Student):
    def loss(hidden: torch.Tensor, base_hidden: torch.Tensor) -> torch.Tensor:
        return kl_from_base(base.logits(base_hidden), student.logits(hidden))

    return loss
