"""What the Launch page offers to start: each stage with its fixed settings and its own defaults."""

from __future__ import annotations

from dataclasses import dataclass

from bidir_core.config import EvalConfig
from bidir_core.lab.config import LabConfig
from bidir_core.pipeline_config import PipelineConfig
from bidir_core.probe_config import ProbeConfig
from bidir_core.training.config import FinetuneConfig

Config = EvalConfig | FinetuneConfig | PipelineConfig | ProbeConfig  # a LabConfig is an EvalConfig
CLASSES: dict[str, type] = {
    "eval": EvalConfig, "finetune": FinetuneConfig, "pipeline": PipelineConfig, "lab": LabConfig,
    "probe": ProbeConfig,
}  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """A stage one can start: the command, what it fixes, and which settings stand in front."""

    command: str
    label: str
    what: str
    front: tuple[str, ...]
    fixed: tuple[tuple[str, str], ...] = ()
    begins: tuple[tuple[str, str], ...] = ()  # its own defaults

    @property
    def scores_items(self) -> bool:
        """Whether it works on the tasks' items; training and the probe have texts of their own."""
        return self.command in ("eval", "pipeline", "lab")


_EVAL = ("model", "limit", "device")
_TUNE = ("model", "data", "steps", "method", "lr", "seed", "device")
_SWEEP = ("sweep", "model", "limit", "device", "controls")
_LIMIT = ("limit", "100")
PRESETS: dict[str, Preset] = {
    "stage1": Preset(
        "eval", "Stage 1 · vanilla", "The base model as it is: every token sees what precedes it.",
        _EVAL, (("regime", "causal"),),
    ),
    "stage2": Preset(
        "eval", "Stage 2 · bidirectional", "The base model, untrained, with a prompt whose tokens "
        "all see each other. The choices stay causal.", _EVAL, (("regime", "bidirectional"),),
    ),
    "sink": Preset(
        "eval", "Stage 2 · sink=1", "Bidirectional, except that the first token stays causal.",
        _EVAL, (("regime", "bidirectional:sink=1"),),
    ),
    "custom": Preset(
        "eval", "Custom regime", "Any dials: sink=K, rows=A-B, self=J, tail=K, layers=A-B, "
        "lambda=X, for example bidirectional:sink=1,lambda=0.03", ("regime", *_EVAL),
        begins=(("regime", "bidirectional:lambda=0.1"),),
    ),
    "stage4": Preset(
        "eval", "Stage 4 · checkpoint", "A fine-tuned checkpoint under a bidirectional prompt; "
        "with the regime causal, the non-prefill compare.", ("checkpoint", "regime", *_EVAL),
        begins=(("regime", "bidirectional"),),
    ),
    "3B": Preset(
        "finetune", "3B · repair", "Prompt bidirectional, response causal, loss on the response "
        "only: the leakage-safe fine-tune.", _TUNE,
    ),
    "3C": Preset(
        "finetune", "3C · control", "The same data, order, steps and seed as 3B, under the causal "
        "mask. Without it, a gain from 3B could be ordinary tuning.", _TUNE,
    ),
    "distill": Preset(
        "finetune", "Distil", "Teaches the bidirectional model its own causal predictions.", _TUNE,
    ),
    "pipeline": Preset(
        "pipeline", "Whole study", "Stages 1, 2, 3B, 3C, 4 and the non-prefill compare, then the "
        "report. Runs that exist are used again, so the same line goes on where it stopped.",
        ("model", "regime", "limit", "steps", "seeds", "device"),
    ),
    "lab-sink": Preset(
        "lab", "Sink sweep", "How many of the first prompt tokens must stay causal for the damage "
        "to go away? Causal and bidirectional are always among the points.", _SWEEP,
        begins=(("sweep", "sink=0,1,2,4,8"), _LIMIT),
    ),
    "lab-lambda": Preset(
        "lab", "Lambda sweep", "How little looking ahead already hurts? Future prompt tokens weigh "
        "lambda times as much as past ones: 0 is causal, 1 is bidirectional.", _SWEEP,
        begins=(("sweep", "lambda=0.001,0.01,0.1,0.3"), _LIMIT),
    ),
    "lab-layers": Preset(
        "lab", "Layers sweep", "Which layers carry the damage? Bidirectional in a window of five "
        "layers only, at every place it fits.", _SWEEP,
        begins=(("sweep", "layers=windows:5"), _LIMIT),
    ),
    "lab-controls": Preset(
        "lab", "Controls", "What could refute the story that the first token carries the damage: "
        "sufficiency, placebo tokens, keys or values, other prompts. A sweep may run beside them.",
        ("sweep", "model", "limit", "device"), (("controls", "yes"),), begins=(_LIMIT,),
    ),
    "probe": Preset(
        "probe", "Mask probe", "Does the model really attend as the regime says, in every layer? "
        "Every run asks this before it starts; alone it takes seconds, scores no items and "
        "writes no run: the answer is in the job's log.",
        ("model", "regime", "device"),
    ),
}  # fmt: skip
GROUPS = {
    "eval": "Evaluate", "finetune": "Fine-tune", "pipeline": "Whole study", "lab": "Lab sweep",
    "probe": "Probe",
}  # fmt: skip
