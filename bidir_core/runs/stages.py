"""What the stages and the ways of training are: their names, what they do, and their folders."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """``code`` names it in records (an objective for what is trained). ``what`` goes on after a
    colon; ``why`` is a sentence for whoever starts it; ``flag`` is that of ``finetune``."""

    code: str
    name: str
    plain: str
    what: str
    folder: str
    flag: str = ""
    why: str = ""

    @property
    def description(self) -> str:
        return f"{self.what} (`{self.flag}`)" if self.flag and self.code != "3A" else self.what


EVALUATIONS = {
    stage.code: stage
    for stage in (
        Stage(
            "1",
            "Stage 1",
            "vanilla",
            "vanilla baseline: the base model, causal prefill",
            "stage1_vanilla_eval",
            why="The base model as it is: every token sees what precedes it.",
        ),
        Stage(
            "2",
            "Stage 2",
            "bidirectional",
            "ablated baseline: the base model, bidirectional prefill, no fine-tuning",
            "stage2_prefill_bidir_eval",
            why="The base model, untrained, with a prompt whose tokens all see each other. The "
            "choices stay causal.",
        ),
        Stage(
            "4",
            "Stage 4",
            "checkpoint",
            "a fine-tuned checkpoint under bidirectional prefill",
            "stage4_postft_eval",
            why="A fine-tuned checkpoint with a bidirectional prompt. Under the regime causal it is the "
            "non-prefill compare: did fine-tuning change the model without the mask?",
        ),
        Stage(
            "nonprefill",
            "Non-prefill compare",
            "causal checkpoint",
            "base and fine-tuned checkpoint, both causal",
            "nonprefill_compare",
        ),
    )
}

TRAININGS = {
    stage.code: stage
    for stage in (
        Stage(
            "3B",
            "Stage 3B",
            "repair fine-tune",
            "leakage-safe fine-tune: prompt bidirectional, response causal, loss on the response only",
            "stage3_finetune_prefill_bidir",
            "--prompt-bidir-response-causal-train",
            "Prompt bidirectional, response causal, loss on the response only: the leakage-safe "
            "fine-tune.",
        ),
        Stage(
            "3C",
            "Stage 3C",
            "control fine-tune",
            "control: same data, order, steps and seed as 3B, causal mask",
            "stage3c_finetune_causal",
            "--causal-train",
            "The same data, order, steps and seed as 3B, under the causal mask. Without it, a gain "
            "from 3B could be ordinary tuning.",
        ),
        Stage(
            "3A",
            "Stage 3A (leaky)",
            "leaky fine-tune",
            "bidirectional over prompt and response: a warning exhibit, never a result",
            "stage3a_finetune_leaky",
            "--leaky-train",
        ),
        Stage(
            "distill",
            "Distil",
            "distillation",
            "the base model's own causal predictions, taught under the bidirectional regime",
            "stage3d_finetune_distil",
            "--distill",
            "Teaches the bidirectional model its own causal predictions.",
        ),
    )
}

LAB = "lab"
_FIRST, _SECOND, *_AFTER = EVALUATIONS.values()
# All of them by folder, in the order in which a study runs them.
STAGES = {stage.folder: stage for stage in (_FIRST, _SECOND, *TRAININGS.values(), *_AFTER)}
LEAKY_WARNING = (
    "3A is leaky: in its training each response token was visible to the place that had to "
    "predict it. Its numbers are a warning, never a result."
)
