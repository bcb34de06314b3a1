"""The Launch page's form: its texts become a checked config and a command line."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import Field, dataclass, replace
from typing import Any

from bidir_core.common.errors import UserError
from bidir_core.common.settings import command_line, parse_value, settings_of
from bidir_core.data import tasks
from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.evaluate.config import EvalConfig, ProbeConfig
from bidir_core.explain.configs import PROMPTS_PER_TASK, RecommendConfig
from bidir_core.explain.sweep_points import ORDER_PRESET_TASKS, LabConfig, planned_points
from bidir_core.jobs.estimate import layers_of
from bidir_core.jobs.pipeline_config import PRESETS as PIPELINE_PRESETS
from bidir_core.jobs.pipeline_config import PUBLISHED, PipelineConfig, from_preset
from bidir_core.runs.layout import EVALUATIONS, TRAININGS
from bidir_core.train.config import OBJECTIVES, FinetuneConfig

Words = tuple[str, ...]


@dataclass(frozen=True)
class Form:
    """What the form says: the config if it is valid, its command, or what is wrong.

    ``dry_words``: the same on five items; empty where there are no items to try.
    """

    key: str
    config: Config | None
    words: Words = ()
    dry_words: Words = ()
    error: str = ""

    @property
    def preset(self) -> Preset:
        return PRESETS[self.key]

    @property
    def title(self) -> str:
        shown = ""
        if isinstance(self.config, LabConfig):
            shown = " | ".join(self.config.sweep)
        elif self.key in ("custom", "stage4", "pipeline", "probe"):
            shown = getattr(self.config, "regime", "")
        return f"{self.preset.label} · {shown}" if shown else self.preset.label


@dataclass(frozen=True)
class Draft:
    """A stage and the size of a pipeline; :meth:`check` takes what was filled in.

    ``small``: begin with what a CPU does in minutes, unless the stage has a beginning of its own.
    """

    key: str
    size: str = PUBLISHED
    small: bool = False

    @property
    def preset(self) -> Preset:
        return PRESETS[self.key]

    @property
    def begins(self) -> dict[str, str]:
        """The fields' first values, where they are not the config's own defaults."""
        quick = SMALL.get(self.preset.command, ()) if self.small else ()
        return {name: str(QUICK[name]) for name in quick} | dict(self.preset.begins)

    @property
    def fixed(self) -> dict[str, str]:
        """Settings that the stage decides, so the form does not ask for them."""
        objective = {"objective": self.key} if self.preset.command == "finetune" else {}
        return dict(self.preset.fixed) | objective

    @property
    def specs(self) -> dict[str, Field[Any]]:
        return {spec.name: spec for spec in settings_of(CLASSES[self.preset.command])}

    def check(self, given: Mapping[str, str]) -> Form:
        """The form with these settings, ready to start or with what is wrong."""
        try:
            values = self._values(given)
            config = self._config(values)
            words, dry_words = self._lines(values, config)
        except UserError as error:
            return Form(self.key, None, error=str(error))
        return Form(self.key, config, words, dry_words)

    def problem(self, name: str, text: str) -> str:
        """What is wrong with one setting, the others being left as they begin; empty if nothing."""
        if self.key == "stage4" and name == "checkpoint":
            return "" if text else NO_CHECKPOINT
        if not text:
            return ""
        ready = {"checkpoint": "any"} if self.key == "stage4" else {}
        try:
            self._config(self._values(ready | {name: text}))
        except UserError as error:
            return str(error)
        return ""

    def _values(self, given: Mapping[str, str]) -> dict[str, Any]:
        """Typed values of the settings that are not left to the config's own defaults."""
        texts = self.fixed | self.begins | dict(given)
        values = {name: _value(self.specs[name], text) for name, text in texts.items()}
        return {"model": EMBEDDED_MODEL} | values

    def _config(self, values: Mapping[str, Any]) -> Config:
        if self.key == "stage4" and not values.get("checkpoint"):
            raise UserError(NO_CHECKPOINT)
        if self.preset.command == "pipeline":
            config: Config = from_preset(values, self.size)
        else:
            config = CLASSES[self.preset.command](**values)
        if isinstance(config, EvalConfig | PipelineConfig | RecommendConfig):
            tasks.task_names(config.tasks)  # their files are there
        if isinstance(config, LabConfig):
            planned_points(config, layers_of(config.model))  # layers that the model does not have
        return config

    def _lines(self, values: Mapping[str, Any], config: Config) -> tuple[Words, Words]:
        """The command line, and that of a dry run."""
        if isinstance(config, PipelineConfig):
            dry = {**values, "limit": 5, **DRY_TRAINING}
            return _pipeline_words(values, self.size), _pipeline_words(dry, self.size)
        if isinstance(config, ProbeConfig):
            return _words("probe", config), ()
        if isinstance(config, FinetuneConfig):
            small: Config = replace(config, **DRY_TRAINING)
        else:
            small = replace(config, limit=5, name="dry-run")
        command = self.preset.command
        return _words(command, config), _words(command, small)


DRY_TRAINING: dict[str, Any] = {
    "steps": 2,
    "batch_samples": 5,
    "eval_every": 0,
    "name": "dry-run",
}

# Of a quick study, what an evaluation or a fine-tune alone begins with on a CPU.
QUICK = PIPELINE_PRESETS["quick"]
SMALL = {
    "eval": ("limit",),
    "finetune": ("steps", "batch_samples", "max_tokens", "warmup_steps", "lr"),
}

NO_CHECKPOINT = "choose the checkpoint to evaluate, or give its folder"


def _words(command: str, config: Config) -> Words:
    words = shlex.split(command_line(command, config))[3:]
    if isinstance(config, FinetuneConfig):
        words.append(OBJECTIVES[config.objective].flag)
    if isinstance(config, LabConfig):
        words += [word for text in config.sweep for word in ("--sweep", text)]
    return tuple(words)


def _pipeline_words(values: Mapping[str, Any], size: str) -> Words:
    """Only what was given: whatever else comes from the preset, on the command line as here."""
    words = ["pipeline"] + ([] if size == PUBLISHED else ["--preset", size])
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag[2:])
        else:
            shown = ",".join(value) if isinstance(value, tuple) else value
            words += [flag, "all" if value is None else str(shown)]
    return tuple(words)


def _value(spec: Field[Any], text: str) -> Any:
    if spec.name == "sweep":  # its commas belong to it
        return (text,)
    return text == "yes" if str(spec.type) == "bool" else parse_value(spec, text)


# What the Launch page offers to start: each stage with its fixed settings and its own defaults.

# A LabConfig is an EvalConfig.
Config = EvalConfig | FinetuneConfig | PipelineConfig | ProbeConfig | RecommendConfig

CLASSES: dict[str, type] = {
    "eval": EvalConfig,
    "finetune": FinetuneConfig,
    "pipeline": PipelineConfig,
    "lab": LabConfig,
    "probe": ProbeConfig,
    "recommend": RecommendConfig,
}


@dataclass(frozen=True)
class Preset:
    """A stage one can start: the command, what it fixes, and which settings stand in front."""

    command: str
    label: str
    what: str
    front: tuple[str, ...]
    fixed: tuple[tuple[str, str], ...] = ()
    begins: tuple[tuple[str, str], ...] = ()  # its own defaults


_EVAL = ("model", "limit", "device")

_TUNE = ("model", "data", "steps", "method", "lr", "seed", "device")

_SWEEP = ("sweep", "model", "limit", "device", "controls")

_LIMIT = ("limit", "100")

PRESETS: dict[str, Preset] = {
    "stage1": Preset(
        "eval", "Stage 1 · vanilla", EVALUATIONS["1"].why, _EVAL, (("regime", "causal"),)
    ),
    "stage2": Preset(
        "eval",
        "Stage 2 · bidirectional",
        EVALUATIONS["2"].why,
        _EVAL,
        (("regime", "bidirectional"),),
    ),
    "sink": Preset(
        "eval",
        "Stage 2 · sink=1",
        "Bidirectional, except that the first token stays causal.",
        _EVAL,
        (("regime", "bidirectional:sink=1"),),
    ),
    "custom": Preset(
        "eval",
        "Custom regime",
        "Any dials: sink=K, rows=A-B, skip=J, self=J, hide=J, "
        "tail=K, layers=A-B or A-, lambda=X, for example bidirectional:sink=1,lambda=0.03",
        ("regime", *_EVAL),
        begins=(("regime", "bidirectional:lambda=0.1"),),
    ),
    "stage4": Preset(
        "eval",
        "Stage 4 · checkpoint",
        EVALUATIONS["4"].why,
        ("checkpoint", "regime", *_EVAL),
        begins=(("regime", "bidirectional"),),
    ),
    "3B": Preset("finetune", "3B · repair", TRAININGS["3B"].why, _TUNE),
    "3C": Preset("finetune", "3C · control", TRAININGS["3C"].why, _TUNE),
    "distill": Preset("finetune", "Distil", TRAININGS["distill"].why, _TUNE),
    "pipeline": Preset(
        "pipeline",
        "Whole study",
        "Stages 1, 2, 3B, 3C, 4 and the non-prefill compare, then the "
        "report. Runs that exist are used again, so the same line goes on where it stopped.",
        ("model", "regime", "limit", "steps", "seeds", "device"),
    ),
    "recommend": Preset(
        "recommend",
        "Recommendation",
        "From which layer on may the prompt look ahead? Predicted from prompts alone, without right "
        "answers.",
        ("model", "limit", "device"),
        begins=(("limit", str(PROMPTS_PER_TASK)),),
    ),
    "lab-law": Preset(
        "lab",
        "First layers",
        "From which layer on may the prompt look ahead without harm? What unlabelled prompts predict "
        "is stored first; then every layers=A- is asked, and sink=1 and 4.",
        ("model", "limit", "device"),
        (("preset", "law"),),
        begins=(_LIMIT,),
    ),
    "lab-order": Preset(
        "lab",
        "Prompt order",
        "Does it matter whether the passage stands before the question or after it, and does looking "
        "ahead help? Both orders: causal, bidirectional, sink=1, layers=A- as prompts alone predict "
        "it, and the prompt given twice, which any gain has to beat or match.",
        ("model", "limit", "device"),
        (("preset", "order"),),
        begins=(("tasks", ",".join(ORDER_PRESET_TASKS)), _LIMIT),
    ),
    "lab-sink": Preset(
        "lab",
        "Sink sweep",
        "How many of the first prompt tokens must stay causal for the damage "
        "to go away? Causal and bidirectional are always among the points.",
        _SWEEP,
        begins=(("sweep", "sink=0,1,2,4,8"), _LIMIT),
    ),
    "lab-lambda": Preset(
        "lab",
        "Lambda sweep",
        "How little looking ahead already hurts? Future prompt tokens weigh "
        "lambda times as much as past ones: 0 is causal, 1 is bidirectional.",
        _SWEEP,
        begins=(("sweep", "lambda=0.001,0.01,0.1,0.3"), _LIMIT),
    ),
    "lab-layers": Preset(
        "lab",
        "Layers sweep",
        "Which layers carry the damage? Bidirectional in a window of five "
        "layers only, at every place it fits.",
        _SWEEP,
        begins=(("sweep", "layers=windows:5"), _LIMIT),
    ),
    "lab-controls": Preset(
        "lab",
        "Controls",
        "What could refute the story that the first token carries the damage: "
        "sufficiency, placebo tokens, keys or values, other prompts. A sweep may run beside them.",
        ("sweep", "model", "limit", "device"),
        (("controls", "yes"),),
        begins=(_LIMIT,),
    ),
    "probe": Preset(
        "probe",
        "Mask probe",
        "Does the model really attend as the regime says, in every layer? "
        "Every run asks this before it starts; alone it takes seconds, scores no items and "
        "writes no run: the answer is in the job's log.",
        ("model", "regime", "device"),
    ),
}

GROUPS = {
    "eval": "Evaluate",
    "finetune": "Fine-tune",
    "pipeline": "Whole study",
    "lab": "Lab sweep",
    "recommend": "Recommend",
    "probe": "Probe",
}
