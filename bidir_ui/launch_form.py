"""What the Launch page's form says: texts become a checked config and the line a terminal takes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields, replace
from typing import Any

from bidir_core import tasks
from bidir_core.config import EMBEDDED_MODEL, EvalConfig, command_line, parse_value
from bidir_core.errors import UserError
from bidir_core.lab.config import LabConfig
from bidir_core.lab.cost import layers_of, planned_points
from bidir_core.pipeline_config import PUBLISHED, PipelineConfig, from_preset
from bidir_core.probe_config import ProbeConfig
from bidir_core.training.config import FinetuneConfig
from bidir_core.training.goals import OBJECTIVES
from bidir_ui.launch_presets import CLASSES, PRESETS, Config, Preset

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
    """A stage and the size of a pipeline; :meth:`check` takes what was filled in."""

    key: str
    size: str = PUBLISHED

    @property
    def preset(self) -> Preset:
        return PRESETS[self.key]

    @property
    def fixed(self) -> dict[str, str]:
        """What the stage decides: nobody is asked."""
        own = {"objective": self.key} if self.preset.command == "finetune" else {}
        return dict(self.preset.fixed) | own

    @property
    def specs(self) -> dict[str, Field[Any]]:
        return {spec.name: spec for spec in fields(CLASSES[self.preset.command])}

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
        texts = self.fixed | dict(self.preset.begins) | dict(given)
        values = {name: _value(self.specs[name], text) for name, text in texts.items()}
        return {"model": EMBEDDED_MODEL} | values

    def _config(self, values: Mapping[str, Any]) -> Config:
        if self.key == "stage4" and not values.get("checkpoint"):
            raise UserError(NO_CHECKPOINT)
        if self.preset.command == "pipeline":
            config: Config = from_preset(values, self.size)
        else:
            config = CLASSES[self.preset.command](**values)
        if isinstance(config, EvalConfig | PipelineConfig):
            tasks.check_selection(
                config.tasks, limit=config.limit, sample=config.sample, fold=config.fold,
                num_fewshot=config.num_fewshot,
            )  # fmt: skip
        if isinstance(config, LabConfig):
            planned_points(config, layers_of(config.model))  # layers that the model does not have
        return config

    def _lines(self, values: Mapping[str, Any], config: Config) -> tuple[Words, Words]:
        """The command line, and that of a dry run."""
        if isinstance(config, PipelineConfig):
            dry = {**values, "limit": 5, "steps": 2, "batch_samples": 5, "eval_every": 0,
                   "name": "dry-run"}  # fmt: skip
            return _pipeline_words(values, self.size), _pipeline_words(dry, self.size)
        if isinstance(config, ProbeConfig):
            return _words("probe", config), ()
        if isinstance(config, FinetuneConfig):
            small: Config = replace(config, steps=2, batch_samples=5, eval_every=0, name="dry-run")
        else:
            small = replace(config, limit=5, name="dry-run")
        command = self.preset.command
        return _words(command, config), _words(command, small)


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
