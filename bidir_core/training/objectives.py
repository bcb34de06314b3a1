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
from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

from bidir_core.errors import UserError
from bidir_core.regimes import Regime, parse_regime
from bidir_core.training.packing import IGNORED, Prefix

HEAD_CHUNK_BYTES = {"cpu": 1 << 29, "cuda": 1 << 31}  # float32 logits of one chunk


@dataclass(frozen=True)
class Objective:
    """One way to fine-tune; ``OBJECTIVES`` holds them all."""

    code: str
    flag: str
    what: str
    prefix: Prefix
    default_regime: str = "bidirectional"
    distils: bool = False
    leaky: bool = False

    def regime(self, asked: str | None) -> Regime:
        """The regime to train under. Raises UserError for one that contradicts the objective."""
        regime = parse_regime(asked if asked is not None else self.default_regime)
        control = self.default_regime == "causal"
        if control and not regime.is_causal:
            raise UserError(f"{self.flag} trains causally; leave out --regime {regime}")
        if not control and regime.is_causal:
            raise UserError(
                f"{self.flag} --regime {regime}: nothing would look ahead; for the causal control "
                "use --causal-train"
            )
        return regime


OBJECTIVES: dict[str, Objective] = {
    objective.code: objective
    for objective in (
        Objective(
            "3B",
            "--prompt-bidir-response-causal-train",
            "prompt bidirectional, response causal, loss on the response",
            prefix="prompt",
        ),
        Objective(
            "3C",
            "--causal-train",
            "the control: everything causal, loss on the response",
            prefix="prompt",
            default_regime="causal",
        ),
        Objective(
            "3A",
            "--leaky-train",
            "bidirectional over prompt and response: leaky, a warning exhibit, never a result",
            prefix="sample",
            leaky=True,
        ),
        Objective(
            "distill",
            "--distill",
            "the base model's causal predictions, taught to the student under the regime",
            prefix="split",
            distils=True,
        ),
    )
}


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
        [checkpoint(loss, *chunk, use_reentrant=False) for chunk in chunks]  # type: ignore[list-item]
    )
