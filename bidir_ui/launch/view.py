"""The Launch page's form: which stage, its settings in front, and all the others behind a fold."""

from __future__ import annotations

from typing import Any

import streamlit as st

from bidir_core.jobs import queue_device
from bidir_core.jobs.cost_model import kind_of
from bidir_core.jobs.pipeline_config import PRESETS as PIPELINE_PRESETS
from bidir_core.jobs.pipeline_config import PUBLISHED, from_preset
from bidir_ui.kit import url, widgets
from bidir_ui.launch.fields import field
from bidir_ui.launch.form import GROUPS, PRESETS, SMALL, Draft, Form
from bidir_ui.shell import Page

SIZES = {"quick": "Quick", PUBLISHED: "As published"}


def choose() -> str:
    """The stage to start, from the URL or by click."""
    known = url.get("stage") if url.get("stage") in PRESETS else "stage1"
    st.session_state["launch-group"] = PRESETS[known].command

    def to_group() -> None:
        command = st.session_state["launch-group"]
        url.put(stage=next(key for key, preset in PRESETS.items() if preset.command == command))

    command = st.segmented_control(
        "What to run",
        list(GROUPS),
        format_func=lambda name: GROUPS[name],
        key="launch-group",
        on_change=to_group,
        label_visibility="collapsed",
        required=True,
    )
    stages = [key for key, preset in PRESETS.items() if preset.command == command]

    def picked(key: str) -> str:
        url.put(**{"f.sweep": ""})  # each sweep begins with its own values
        return key

    if len(stages) > 1:
        known = url.bound(
            st.segmented_control,
            "Stage",
            name="stage",
            options=stages,
            required=True,
            format_func=lambda key: PRESETS[key].label,
            label_visibility="collapsed",
            read=lambda text: text if text in stages else stages[0],
            write=picked,
        )
    return known


def form(page: Page) -> Form:
    """Draw the settings of the chosen stage and check them."""
    small = kind_of(queue_device(["--device", url.get("f.device") or "auto"])) == "cpu"
    draft = Draft(choose(), small=small)
    preset = draft.preset
    widgets.note(preset.what)
    runs = page.runs  # what stands above waits for no run folders
    defaults: dict[str, Any] = dict(draft.begins)
    if preset.command == "pipeline":
        draft = Draft(draft.key, _size("quick" if small else PUBLISHED))
        defaults = PIPELINE_PRESETS[draft.size]
    elif small and preset.command in SMALL:
        widgets.note(
            "On a CPU the defaults are small: minutes, but wide intervals. Write “all” to take every "
            "item."
        )
    specs = draft.specs
    given: dict[str, str] = {}
    columns = st.columns(3, gap="medium")
    for number, name in enumerate(preset.front):
        with columns[number % 3]:
            given |= field(draft, specs[name], runs, defaults)
    handled = {*preset.front, *draft.fixed, "runs_dir", "preset"}
    if preset.command in ("eval", "lab"):  # as wide as five names need
        given |= field(draft, specs["tasks"], runs, defaults)
        handled.add("tasks")
    others = [spec for name, spec in specs.items() if name not in handled and spec.metadata["cli"]]
    changed = [spec.name for spec in others if url.get(f"f.{spec.name}")]
    # The label never changes: another label would make another fold, which begins closed.
    with st.expander("All settings", expanded=False, key="all-settings", on_change="rerun") as fold:
        if fold.open:
            columns = st.columns(3, gap="medium")
            for number, spec in enumerate(others):
                with columns[number % 3]:
                    given |= field(draft, spec, runs, defaults)
        else:  # two dozen widgets that nobody sees would double the time to open the page
            given |= {name: url.get(f"f.{name}").strip() for name in changed}
    if changed:
        widgets.note(f"{len(changed)} of these changed: {', '.join(changed)}.")
    return draft.check(given)


def _size(default: str) -> str:
    def words(name: str) -> str:
        config = from_preset({"model": ""}, name)
        return f"{SIZES.get(name, name)}: {config.limit} items a task, {config.steps} steps"

    return url.choice(
        st.segmented_control,
        "Size",
        name="size",
        options={name: words(name) for name in PIPELINE_PRESETS},
        default=default,
        required=True,
    )
