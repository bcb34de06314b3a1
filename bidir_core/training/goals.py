"""What can be trained: which tokens are the prefix, under which regime, with which loss.

    code     the sample's prefix       loss                                    regime
    3B       its prompt                cross entropy of the response           bidirectional
    3C       its prompt                the same: the control                   causal
    3A       prompt AND response       the same, LEAKY: a token is visible     bidirectional
                                       to the place that must predict it
    distill  its prompt, or a cut      KL(base, causal || student, regime)     bidirectional
             anywhere in the text      behind the cut

The losses themselves are in :mod:`bidir_core.training.objectives`. Nothing here imports torch, so
that the app's forms and the command line's help need not wait for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bidir_core.errors import UserError
from bidir_core.regimes import Regime, parse_regime

if TYPE_CHECKING:
    from bidir_core.training.packing import Prefix


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
