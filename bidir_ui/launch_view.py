"""The Launch page's form: a stage's settings become a checked config and a command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, replace
from pathlib import Path
from typing import Any

import streamlit as st

from bidir_core import tasks
from bidir_core.config import EMBEDDED_MODEL, EMBEDDED_MODELS, EvalConfig, command_line, parse_value
from bidir_core.errors import UserError
from bidir_core.pipeline_config import PRESETS as PIPELINE_PRESETS
from bidir_core.pipeline_config import PUBLISHED, PipelineConfig, from_preset
from bidir_core.training.config import FinetuneConfig
from bidir_core.training.goals import OBJECTIVES
from bidir_ui import fmt, url, widgets
from bidir_ui.data import RunInfo

Config = EvalConfig | FinetuneConfig | PipelineConfig


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
}  # fmt: skip
GROUPS = {"eval": "Evaluate", "finetune": "Fine-tune", "pipeline": "Whole study"}
CLASSES: dict[str, type] = {
    "eval": EvalConfig, "finetune": FinetuneConfig, "pipeline": PipelineConfig,
}  # fmt: skip
LABELS = {"lr": "Learning rate", "attn": "Attention", "bos": "BOS", "dtype": "Number format",
          "limit": "Items per task", "num_fewshot": "Few-shot examples", "device": "Device",
          "data": "Training data", "regime": "Regime", "lora_rank": "LoRA rank",
          "lora_alpha": "LoRA alpha", "lora_dropout": "LoRA dropout"}  # fmt: skip


@dataclass(frozen=True)
class Form:
    """What the form says: the config if it is valid, its command, or what is wrong."""

    key: str
    preset: Preset
    config: Config | None
    words: tuple[str, ...]
    dry_words: tuple[str, ...]
    error: str = ""

    @property
    def title(self) -> str:
        regime = getattr(self.config, "regime", None)
        shown = self.key in ("custom", "stage4", "pipeline") and regime
        return f"{self.preset.label} · {regime}" if shown else self.preset.label


def choose() -> str:
    """The stage to start, from the URL or by click."""
    known = url.get("stage") if url.get("stage") in PRESETS else "stage1"
    st.session_state["launch-group"] = PRESETS[known].command

    def to_group() -> None:
        command = st.session_state["launch-group"]
        url.put(stage=next(key for key, one in PRESETS.items() if one.command == command))

    command = st.segmented_control(
        "What to run", list(GROUPS), format_func=lambda name: GROUPS[name], key="launch-group",
        on_change=to_group, label_visibility="collapsed", required=True,
    )  # fmt: skip
    mine = [key for key, one in PRESETS.items() if one.command == command]
    if len(mine) > 1:
        known = url.bound(
            st.segmented_control, "Stage", name="stage", options=mine, required=True,
            format_func=lambda key: PRESETS[key].label, label_visibility="collapsed",
            read=lambda text: text if text in mine else mine[0],
        )  # fmt: skip
    return known


def form(runs: tuple[RunInfo, ...]) -> Form:
    """Draw the settings of the chosen stage and check them."""
    key = choose()
    preset = PRESETS[key]
    widgets.note(preset.what)
    fixed = dict(preset.fixed)
    if preset.command == "finetune":
        fixed["objective"] = key
    specs = {spec.name: spec for spec in fields(CLASSES[preset.command])}
    given: dict[str, str] = fixed | dict(preset.begins)
    pipeline_preset = PUBLISHED
    if preset.command == "pipeline":
        pipeline_preset = url.bound(
            st.segmented_control, "Size", name="size", options=list(PIPELINE_PRESETS), required=True,
            format_func=lambda name: {"quick": "Quick: 100 items a task, 60 steps",
                                      PUBLISHED: "As published: 500 items a task, 400 steps"}[name],
            read=lambda text: text if text in PIPELINE_PRESETS else PUBLISHED,
            write=lambda name: "" if name == PUBLISHED else name,
        )  # fmt: skip
    defaults: dict[str, Any] = dict(preset.begins)
    if preset.command == "pipeline":
        defaults = PIPELINE_PRESETS[pipeline_preset]
    columns = st.columns(3, gap="medium")
    for number, name in enumerate(preset.front):
        with columns[number % 3]:
            given |= _field(specs[name], runs, defaults)
    if preset.command == "eval":  # as wide as five names need
        given |= _field(specs["tasks"], runs, defaults)
    hidden = {*preset.front, *fixed, "tasks" if preset.command == "eval" else "", "runs_dir"}
    rest = [spec for name, spec in specs.items() if name not in hidden and spec.metadata["cli"]]
    changed = [spec.name for spec in rest if url.get(f"f.{spec.name}")]
    label = f"All settings ({len(changed)} changed)" if changed else "All settings"
    with st.expander(label, expanded=False, key="all-settings"):
        columns = st.columns(3, gap="medium")
        for number, spec in enumerate(rest):
            with columns[number % 3]:
                given |= _field(spec, runs, defaults)
    return _check(key, preset, specs, given, pipeline_preset)


def _check(
    key: str, preset: Preset, specs: Mapping[str, Field[Any]], given: Mapping[str, str], size: str
) -> Form:
    try:
        values = {name: _value(specs[name], text) for name, text in given.items()}
        values.setdefault("model", EMBEDDED_MODEL)
        if key == "stage4" and not values.get("checkpoint"):
            raise UserError("choose the checkpoint to evaluate, or give its folder")
        config: Config
        if preset.command == "pipeline":
            config = from_preset(values, size)
            dry = {**values, "limit": 5, "steps": 2, "batch_samples": 5, "eval_every": 0,
                   "name": "dry-run"}  # fmt: skip
            words, dry_words = (_pipeline_words(v, size) for v in (values, dry))
        elif preset.command == "finetune":
            config = FinetuneConfig(**values)
            small = replace(config, steps=2, batch_samples=5, eval_every=0, name="dry-run")
            words, dry_words = (_words("finetune", one) for one in (config, small))
        else:
            config = EvalConfig(**values)
            few = replace(config, limit=5, name="dry-run")
            words, dry_words = (_words("eval", one) for one in (config, few))
        if isinstance(config, EvalConfig | PipelineConfig):
            tasks.check_selection(
                config.tasks, limit=config.limit, sample=config.sample, fold=config.fold,
                num_fewshot=config.num_fewshot,
            )  # fmt: skip
    except UserError as error:
        return Form(key, preset, None, (), (), str(error))
    return Form(key, preset, config, words, dry_words)


def _words(command: str, config: Any) -> tuple[str, ...]:
    import shlex

    words = shlex.split(command_line(command, config))[3:]
    if isinstance(config, FinetuneConfig):
        words.append(OBJECTIVES[config.objective].flag)
    return tuple(words)


def _pipeline_words(values: Mapping[str, Any], size: str) -> tuple[str, ...]:
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
    return text == "yes" if str(spec.type) == "bool" else parse_value(spec, text)


def _field(
    spec: Field[Any], runs: tuple[RunInfo, ...], defaults: Mapping[str, Any]
) -> dict[str, str]:
    """One setting's widget, bound to the URL; what it says, unless that is the default."""
    name, kind = f"f.{spec.name}", str(spec.type)
    label = LABELS.get(spec.name, spec.name.replace("_", " ").capitalize())
    hint = spec.metadata["help"]
    hint = hint[0].upper() + hint[1:] + f". On the command line: --{spec.name.replace('_', '-')}"
    default = defaults.get(spec.name, None if spec.default is MISSING else spec.default)
    choices = spec.metadata["choices"]
    if kind == "bool":
        on = url.bound(
            st.toggle, label, name=name, help=hint,
            read=lambda text: {"yes": True, "no": False}.get(text, bool(default)),
            write=lambda value: "" if value == default else ("yes" if value else "no"),
        )  # fmt: skip
        text = "" if on == default else ("yes" if on else "no")
    elif choices:
        text = url.bound(
            st.selectbox, label, name=name, options=list(choices), help=hint,
            read=lambda text: text if text in choices else default,
            write=lambda value: "" if value == default else value,
        )  # fmt: skip
        text = "" if text == default else str(text)
    elif spec.name == "tasks":
        text = _tasks(label, name, hint)
    elif spec.name in ("model", "checkpoint"):
        text = from_runs(spec.name, label, name, hint, runs)
    else:
        shown = {"limit": "all"}.get(
            spec.name, "auto" if spec.metadata["metavar"] == "N|auto" else ""
        )
        shown = shown if default is None else str(default)
        text = url.bound(
            st.text_input, label, name=name, help=hint, placeholder=shown, read=str,
            write=lambda value: value.strip(), max_chars=400,
        ).strip()  # fmt: skip
    return {spec.name: text} if text else {}


def _tasks(label: str, name: str, hint: str) -> str:
    def read(text: str) -> list[str]:
        return [part for part in text.split(",") if part] or list(tasks.TASKS)

    def write(value: list[str]) -> str:
        return "" if set(value) == set(tasks.TASKS) or not value else ",".join(value)

    own = [task for task in read(url.get(name)) if task not in tasks.TASKS]
    chosen = url.bound(
        st.multiselect, label, name=name, options=[*tasks.TASKS, *own], help=hint, read=read,
        write=write, accept_new_options=True, format_func=fmt.task,
        placeholder="all five; or the path of a JSONL file",
    )  # fmt: skip
    return write(chosen)


def from_runs(which: str, label: str, name: str, hint: str, runs: tuple[RunInfo, ...]) -> str:
    """Models that were used here, or checkpoints that were made here, or anything typed."""
    if which == "model":
        seen = [run.model for run in runs if run.model and not run.is_reference]
        options = list(dict.fromkeys([*EMBEDDED_MODELS, *seen]))
    else:
        made = [Path(run.path) / "final" for run in runs if run.kind == "finetune" and run.is_done]
        options = [str(path) for path in made if path.is_dir()]
    default = options[0] if which == "model" else None
    now = url.get(name)
    if now and now not in options:
        options.append(now)

    def shown(value: str) -> str:
        path = Path(value)
        ours = path.name == "final" and len(path.parts) > 2
        return f"{fmt.stage(path.parts[-3])} {path.parts[-2]}" if ours else value

    chosen = url.bound(
        st.selectbox, label, name=name, options=options, help=hint, accept_new_options=True,
        read=lambda text: text or default, format_func=shown,
        write=lambda value: "" if value in (None, EMBEDDED_MODEL) else value.strip(),
        placeholder="a fine-tune made here, or its folder",
    )  # fmt: skip
    return str(chosen or "").strip()
