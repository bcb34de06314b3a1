"""A setting of the Launch page's form: its widget, bound to the URL, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Any

import streamlit as st

from bidir_core.common.settings import join_list, split_list
from bidir_core.data import tasks
from bidir_core.data.assets import EMBEDDED_MODEL, EMBEDDED_MODELS
from bidir_ui.kit import fmt, html, url
from bidir_ui.launch.form import Draft
from bidir_ui.reading.data import RunInfo

LABELS = {
    "lr": "Learning rate",
    "attn": "Attention",
    "bos": "BOS",
    "dtype": "Number format",
    "limit": "Items per task",
    "items_file": "A file that names the items",
    "num_fewshot": "Few-shot examples",
    "repeat_prompt": "Prompt given, times",
    "data": "Training data",
    "lora_rank": "LoRA rank",
    "lora_alpha": "LoRA alpha",
    "lora_dropout": "LoRA dropout",
    "sweep": "What to vary",
    "controls": "Add the controls",
}
SWEEP_HELP = (
    "Dials with their values, as in sink=0,1,2 or layers=windows:5 (also prefixes, suffixes, "
    "A-B); a star makes every combination, a bar puts one sweep after another: "
    "`sink=0,1*lambda=0.1,1|tail=1`. On the command line: --sweep"
)


def field(
    draft: Draft, spec: Field[Any], runs: tuple[RunInfo, ...], defaults: Mapping[str, Any]
) -> dict[str, str]:
    """Draw one setting; what it says, unless that is the default. Below it what is wrong with it."""
    default = defaults.get(spec.name, None if spec.default is MISSING else spec.default)
    text = _widget(spec, runs, default)
    if wrong := draft.problem(spec.name, text):
        sentence = f"{wrong[:1].upper()}{wrong[1:]}"
        # What was not touched is missing, not wrong.
        marked = html.el("span", f"✕ {sentence}", cls="b-down") if text else f"○ {sentence}"
        html.show(html.div("b b-note", marked))
    return {spec.name: text} if text else {}


def _widget(spec: Field[Any], runs: tuple[RunInfo, ...], default: Any) -> str:
    name, choices = f"f.{spec.name}", spec.metadata["choices"]
    label = LABELS.get(spec.name, spec.name.replace("_", " ").capitalize())
    hint = spec.metadata["help"]
    hint = hint[0].upper() + hint[1:] + f". On the command line: --{spec.name.replace('_', '-')}"
    if str(spec.type) == "bool":
        on = url.bound(
            st.toggle,
            label,
            name=name,
            help=hint,
            read=lambda text: {"yes": True, "no": False}.get(text, bool(default)),
            write=lambda value: "" if value == default else ("yes" if value else "no"),
        )
        return "" if on == default else ("yes" if on else "no")
    if choices:
        chosen = url.choice(
            st.selectbox, label, name=name, options=list(choices), default=default, help=hint
        )
        return "" if chosen == default else str(chosen)
    if spec.name == "tasks":
        return _tasks(label, name, hint, default)
    if spec.name in ("model", "checkpoint"):
        return from_runs(spec.name, label, name, hint, runs)
    if spec.name == "sweep":  # a preset's stands in the box, to be changed, and not behind it
        none = "nothing but the controls"
        more = {"help": SWEEP_HELP, "max_chars": 1000, "placeholder": none}
        return url.text(label, name=name, default=default or "", **more).strip()
    shown = {"limit": "all"}.get(spec.name, "auto" if spec.metadata["metavar"] == "N|auto" else "")
    shown = shown if default is None else str(default)
    return url.text(label, name=name, help=hint, max_chars=400, placeholder=shown).strip()


def _tasks(label: str, name: str, hint: str, default: str | tuple[str, ...]) -> str:
    usual = list(split_list(default) if isinstance(default, str) else default)

    def read(text: str) -> list[str]:
        return list(split_list(text)) or usual

    def write(value: list[str]) -> str:
        return "" if set(value) == set(usual) or not value else join_list(value)

    custom = [task for task in read(url.get(name)) if task not in tasks.TASKS]
    chosen = url.bound(
        st.multiselect,
        label,
        name=name,
        options=[*tasks.TASKS, *custom],
        help=hint,
        read=read,
        write=write,
        accept_new_options=True,
        format_func=fmt.task,
        placeholder="the usual ones; or the path of a JSONL file",
    )
    return write(chosen)


def from_runs(which: str, label: str, name: str, hint: str, runs: tuple[RunInfo, ...]) -> str:
    """Models that were used here, or checkpoints that were made here, or anything typed."""
    if which == "model":
        seen = [run.model for run in runs if run.model and not run.is_reference]
        options = list(dict.fromkeys([*EMBEDDED_MODELS, *seen]))
    else:
        folders = [Path(run.path) / "final" for run in runs if run.is_finetune and run.is_done]
        options = [str(path) for path in folders if path.is_dir()]
    default = options[0] if which == "model" else None
    now = url.get(name)
    if now and now not in options:
        options.append(now)

    def shown(value: str) -> str:
        path = Path(value)
        ours = path.name == "final" and len(path.parts) > 2
        return f"{fmt.stage(path.parts[-3])} {path.parts[-2]}" if ours else value

    chosen = url.bound(
        st.selectbox,
        label,
        name=name,
        options=options,
        help=hint,
        accept_new_options=True,
        read=lambda text: text or default,
        format_func=shown,
        write=lambda value: "" if value in (None, EMBEDDED_MODEL) else value.strip(),
        placeholder="a fine-tune made here, or its folder",
    )
    return str(chosen or "").strip()
