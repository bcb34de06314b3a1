"""Controls that could refute the story "the damage comes from the first token looking ahead".

Each control says beforehand what would refute the story; ``control_points`` says what is run for
it, and ``control_answers`` how its outcome follows from intervals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bidir_core.errors import UserError
from bidir_core.lab.control_answers import (
    Answer,
    context_floor,
    keys_or_values,
    necessity,
    one_point,
    prompt_conditions,
    sufficiency,
)
from bidir_core.lab.control_points import measure_attention, middle_token, plan
from bidir_core.lab.triviality import TRIVIAL, triviality

if TYPE_CHECKING:
    from bidir_core.lab.summary import Sweep

__all__ = ["CONTROLS", "judge", "measure_attention", "middle_token", "plan"]


def judge(sweep: Sweep) -> list[dict[str, Any]]:
    """Each control with its question, what would refute the story, its outcome and finding."""
    found = []
    for control in CONTROLS:
        name, title, question, refuted_by, ask = control
        try:
            outcome, finding = ask(sweep)
        except UserError as error:
            outcome, finding = "undecided", f"cannot be judged: {error}"
        if finding:
            found.append(
                {
                    "name": name,
                    "title": title,
                    "question": question,
                    "refuted_by": refuted_by,
                    "outcome": outcome,
                    "finding": finding,
                }
            )
    return found


# (name, title, question, what would refute the story, how it is judged)
CONTROLS: tuple[tuple[str, str, str, str, Callable[[Sweep], Answer]], ...] = (
    (
        "necessity", "Necessity (sink=1)",
        "Does keeping the first token causal remove the damage?",
        "Less than half of the damage removed, with its whole interval.", necessity,
    ),
    (
        "sufficiency", "Sufficiency (rows=0-0)",
        "If only the first token looks ahead, is the damage there?",
        "Less than half of the damage, with its whole interval.", sufficiency,
    ),
    (
        "placebo", "Placebo (skip=J)",
        "Does keeping one token in the middle causal help as well?",
        "More than half of the damage removed, with its whole interval: any token would do.",
        one_point("skip", "Keeping token {} causal", "refutes", "supports"),
    ),
    (
        "relocated", "Relocated sink (self=J)",
        "Can another token that sees only itself stand in for the first?",
        "More than half of the damage removed, with its whole interval: it is not the first token.",
        one_point("self_token", "Letting token {} see only itself", "refutes", "supports"),
    ),
    (
        "keys-values", "Key or value (patched)",
        "Is it how the first token is found (keys), or what is read from it (values)?",
        "Nothing here: patching both is sink=1 exactly. It says by which path.", keys_or_values,
    ),
    (
        "triviality", "Triviality (attention ahead)",
        "Is bidirectional attention still used under sink=1, or did it merely stop mattering?",
        f"Under {100 * TRIVIAL:.0f} % of attention on tokens ahead, with its whole interval.",
        triviality,
    ),
    (
        "prompts", "Prompt conditions",
        "Does it hold with the BOS token the other way, and with the chat template?",
        "A prompt in which sink=1 removes less than half of the damage.", prompt_conditions,
    ),
    (
        "tail", "Last prompt token (tail=1)",
        "Is it instead that earlier tokens see the last one, from which the answer is predicted?",
        "More than half of the damage removed, with its whole interval.",
        one_point("tail", "Hiding the last prompt token from earlier ones", "refutes", "supports"),
    ),
    (
        "floor", "Context floor (no context)",
        "Is there any use of the context to lose?",
        "A causal run that does not beat the same model without any context.", context_floor,
    ),
)  # fmt: skip
