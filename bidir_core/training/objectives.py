"""What is trained, and the losses it is trained with.

    code     the sample's prefix       loss                                    regime
    3B       its prompt                cross entropy of the response           bidirectional
    3C       its prompt                the same: the control                   causal
    3A       prompt AND response       the same, LEAKY: a token is visible     bidirectional
                                       to the place that must predict it
    distill  its prompt, or a cut      KL(base, causal || student, regime)     bidirectional
             anywhere in the text      behind the cut

Any of them may be anchored: a weighted KL(base, causal || student, causal) on the same positions
keeps the student's causal mode where the base model was.

Losses are per predicted token, in nats, float32, and pure functions of logits ``[n, vocab]``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

from bidir_core.training.goals import OBJECTIVES, Objective
from bidir_core.training.packing import IGNORED

__all__ = ["OBJECTIVES", "Objective", "cross_entropy", "in_chunks", "kl_from_base"]

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
