"""The Runs page's table, and what can be done with one run."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pandas as pd
import streamlit as st

from bidir_core.analyse import stats
from bidir_core.common.errors import UserError
from bidir_core.data import item_texts
from bidir_core.data.items import ONE_SIDED
from bidir_core.runs.find import delete_run, rename_run
from bidir_core.runs.layout import is_read_only
from bidir_core.runs.run import Run
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.reading import data
from bidir_ui.reading.data import RunInfo
from bidir_ui.runs_tree import Node

BAD = {
    "corrupt": "The folder cannot be read",
    "failed": "The run stopped with an error",
    "lost": "Its process is gone; --resume goes on where it stopped",
}


METRICS_ONLY = (
    "It kept its scores and not its items. It still counts in the Report, in the tables of stages "
    "and in means over seeds; it cannot be paired item by item, so Compare, Flips and Item leave it "
    "out. Its own page has the command that makes the items again."
)


def frame(runs: list[RunInfo], a: RunInfo | None, b: RunInfo | None) -> pd.DataFrame:
    """One row a run, ready to show."""
    return _typed([_row(run, a, b) for run in runs])


def tree_frame(nodes: list[Node], a: RunInfo | None, b: RunInfo | None) -> pd.DataFrame:
    """One row a line of the tree; a group's scores are means over its runs, of the same items."""
    rows = []
    for node in nodes:
        row = {"what": node.text}
        row |= _row(node.run, a, b) if node.run else _group_row(node, a, b)
        rows.append({name: row[name] for name in ("what", *IN_TREE)})
    return _typed(rows)


IN_TREE = [
    "role",
    "state",
    "n",
    "acc",
    "half",
    "acc_norm",
    "created",
    "seconds",
    "device",
    "name",
    "run",
]


def _typed(rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows)
    return table if table.empty else table.astype({"n": "Int64"})


def _group_row(node: Node, a: RunInfo | None, b: RunInfo | None) -> dict[str, Any]:
    states = {state_of(run) for run in node.runs}
    roles = [role for run in node.runs if (role := _role(run, a, b))]
    group: dict[str, Any] = dict.fromkeys(IN_TREE, None)
    group |= {
        "role": roles[0] if len(roles) == 1 else "both" if roles else "",
        "state": states.pop() if len(states) == 1 else "several",
        "created": max(run.created for run in node.runs),
        "name": "",
        "device": "",
        "run": "",
    }
    if node.level and len({run.n_items for run in node.runs}) == 1:  # one arm, the same items
        group["n"] = node.runs[0].n_items or None
        for score in ("acc", "acc_norm"):
            known = [_percent(run.macro.get(score)) for run in node.runs]
            group[score] = None if None in known else sum(known) / len(known)  # type: ignore[arg-type]
    return group


def _role(run: RunInfo, a: RunInfo | None, b: RunInfo | None) -> str:
    """Its part in the chosen pair; a sweep has those of its points."""
    parts = (("baseline", a), ("candidate", b))
    own = [
        word
        for word, chosen in parts
        if chosen is not None
        and (chosen.id == run.id or (run.is_sweep and chosen.id.startswith(f"{run.id}/")))
    ]
    return "both" if len(own) == 2 else "".join(own)


def _row(run: RunInfo, a: RunInfo | None, b: RunInfo | None) -> dict[str, Any]:
    return {
        "role": _role(run, a, b),
        "stage": run.stage_label,
        "name": item_texts.visible(fmt.clip(run.name, 60)),
        "weights": item_texts.visible(_weights(run)),
        "regime": "sweep" if run.is_sweep else item_texts.visible(run.regime),
        "state": state_of(run),
        "n": run.n_items or None,
        "acc": _percent(run.macro.get("acc")),
        "half": half_width(run),
        "acc_norm": _percent(run.macro.get("acc_norm")),
        "extent": _taken(run),
        "model": item_texts.visible(fmt.clip(run.model, 60)),
        "created": run.created,
        "seconds": None if run.cost.get("shared_device") else run.cost.get("seconds"),
        "device": fmt.clip(str(run.cost.get("device") or ""), 40),
        "run": run.id,
    }


def _weights(run: RunInfo) -> str:
    """``base``, ``3B full``; for a fine-tune also how long it was trained, for an evaluation under
    another mask than in training also that one."""
    if run.is_finetune and run.steps:
        return f"{run.weights}, {run.steps}"
    return run.weights + (f", trained {run.trained_under}" if run.trained_under else "")


def state_of(run: RunInfo) -> str:
    """Its state as a mark and a word."""
    if run.is_imported and run.is_done:
        return "● imported"
    if run.is_evaluation and run.is_done and not run.has_items:
        return "● metrics only"  # fit for reports, not for pairing
    return fmt.STATE_MARKS.get(run.state, run.state)


def _taken(run: RunInfo) -> str:
    """Which items an evaluation took; a fine-tune took none."""
    if run.is_finetune:
        return ""
    half = run.dtype if run.dtype not in ("", "float32", "auto") else ""
    return ", ".join(filter(None, (run.extent, half, "compact" if run.compact else "")))


def _percent(value: float | None) -> float | None:
    return None if fmt.missing(value) else 100 * float(value)  # type: ignore[arg-type]


def half_width(run: RunInfo) -> float | None:
    """Half of the macro accuracy's own 95 % interval, in points."""
    known = [row for row in run.tasks.values() if row.get("n") and row.get("acc") is not None]
    if not known or len(known) < len(run.tasks):
        return None
    return _half(tuple((float(row["acc"]), int(row["n"])) for row in known))


@lru_cache(maxsize=10_000)
def _half(accuracies: tuple[tuple[float, int], ...]) -> float:
    """Remembered: for thousands of runs the page would compute it for seconds at every click."""
    level = stats.macro_delta([stats.accuracy(acc, n) for acc, n in accuracies])
    return 50 * (level.high - level.low)


def _width(texts: pd.Series, least: int = 104, most: int = 280) -> int:
    """Pixels for a column whose end is what tells rows apart, so it is not cut."""
    return int(min(max(7.2 * texts.str.len().max() + 20, least), most))


def show(table: pd.DataFrame, key: str) -> widgets.Selected:
    """Draw the table, of runs or of the tree's lines."""
    number, text = st.column_config.NumberColumn, st.column_config.TextColumn
    weights = (
        "The weights that were evaluated or trained; and the regime they were trained under, "
        "where that is another one"
    )
    half = (
        "Half of the 95 % interval of acc alone, in points. Two runs on the same items are compared "
        "pairwise, far more sharply."
    )
    seconds = "Empty where other runs used the device meanwhile"
    columns = {
        "what": text("Study, arm, seed", width=440),
        "role": text("Role", width=72),
        "stage": text("Stage", width=80),
        "name": text("Name", width=172),
        "weights": text("Weights", width=186, help=weights),
        "regime": text("Regime", width=_width(table["regime"]) if "regime" in table else None),
        "state": text("State", width=104),
        "n": number("Items", format="localized", width=64),
        "acc": number("acc, %", format="%.1f", width=62, help="Macro mean over the tasks"),
        "half": number("±", format="%.1f", width=44, help=half),
        "acc_norm": number("acc_norm, %", format="%.1f", width=92),
        "extent": text("Taken", width=134),
        "model": text("Model", width=158),
        "created": text("Made (UTC)", width=128),
        "seconds": number("Seconds", format="%.0f", width=72, help=seconds),
        "device": text("Device", width=70),
        "run": text("Run id"),
    }
    alt = "Every run: role, stage, name, weights, regime, state, items, scores, cost, date, id."
    return widgets.selectable(table, columns, key=key, mode="multi-row", tall=560, alt=alt)


def actions(runs: tuple[RunInfo, ...], selected: list[str]) -> None:
    """Buttons for the selected runs."""
    chosen = [run for run_id in selected if (run := data.by_id(runs, run_id))]
    with widgets.row():
        one_run(chosen[0] if len(chosen) == 1 else None)
        both = len(chosen) == 2 and all(run.can_pair for run in chosen)
        if st.button("Compare the two", disabled=not both, key="as-pair"):
            older, newer = sorted(chosen, key=lambda run: (run.stage, run.created))
            url.put(a=older.id, b=newer.id)
            st.rerun()
        if not chosen:
            widgets.note("Click a row to open it; tick one to use or rename it, two to compare.")
    if any(run.is_evaluation and run.is_done and not run.has_items for run in chosen):
        widgets.banner("info", "Scores only", METRICS_ONLY)


def one_run(run: RunInfo | None) -> None:
    """What can be done with a run: its part in the chosen pair, its name, its end."""
    usable = run is not None and run.can_pair
    for side, label in (("a", "Use as baseline"), ("b", "Use as candidate")):
        if st.button(label, disabled=not usable, key=f"as-{side}") and run:
            url.put(**{side: run.id})
            st.rerun()
    if is_read_only():
        return
    free = run is not None and run.state not in ("running", "queued")
    if st.button("Rename", disabled=not free, key="rename") and run:
        _rename(run)
    if st.button("Delete", disabled=not free, key="delete") and run:
        _delete(run)


@st.dialog("Rename run")
def _rename(run: RunInfo) -> None:
    st.text(run.id)
    name = st.text_input("Name after the time stamp", value=run.name, max_chars=80)
    if st.button("Rename", type="primary", key="rename-confirm"):
        _change(run, lambda it: rename_run(it, name.strip() or None).id, "Not renamed")


@st.dialog("Delete run")
def _delete(run: RunInfo) -> None:
    st.text(run.id)
    lost = f"{fmt.count(run.n_items)} scored items" if run.n_items else "this folder"
    widgets.note(
        f"This removes {lost} from disk for good. Computing took "
        f"{fmt.duration(run.cost.get('seconds'))}."
    )
    if st.button("Delete for good", type="primary", key="delete-confirm"):
        _change(run, delete_run, "Not deleted")


def _change(run: RunInfo, change: Callable[[Run], str | None], failed: str) -> None:
    """Change a run's folder; ``change`` returns its new id, which the URL then has for the old."""
    try:
        new_id = change(data.run_of(run))
    except UserError as error:
        widgets.banner("error", failed, str(error))
        return
    for side in ("a", "b", "id"):
        if url.get(side) == run.id:
            url.put(**{side: new_id})
    st.rerun()


def problems(runs: tuple[RunInfo, ...]) -> None:
    """What failed, and where its log is, and tasks that measure no answer; nothing if all is well."""
    for sentence in dict.fromkeys(text for run in runs for text in run.one_sided):
        widgets.banner("info", ONE_SIDED, sentence)
    bad = [run for run in runs if run.state in ("corrupt", "failed", "lost")]
    if not bad:
        return
    rows = [
        (
            widgets.link(widgets.code_text(run.id), "run", url.params(id=run.id)),
            BAD[run.state],
            run.error or fmt.NONE,
            widgets.code_text(f"{run.path}/log.txt"),
        )
        for run in bad
    ]
    widgets.heading(f"{len(bad)} need{'s' if len(bad) == 1 else ''} attention")
    head = ("Run", "State", "What it says", "Log")
    html.show(widgets.table(head, rows, name="runs_to_look_at", left=(1, 2, 3)))


def config_difference(a: RunInfo, b: RunInfo) -> list[tuple[str, str, str]]:
    """Settings and facts that differ between two runs, as (name, in a, in b)."""
    in_a, in_b = _flat(data.run_of(a).config), _flat(data.run_of(b).config)
    skip = {"created", "schema"}
    names = [name for name in dict.fromkeys([*in_a, *in_b]) if name not in skip]
    return [
        (name.removeprefix("config."), in_a.get(name, fmt.NONE), in_b.get(name, fmt.NONE))
        for name in names
        if in_a.get(name) != in_b.get(name)
    ]


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, str]:
    out: dict[str, str] = {}
    for key, inner in value.items():
        if isinstance(inner, dict):
            out |= _flat(inner, f"{prefix}{key}.")
        elif inner is not None and inner != []:  # None and [] mean not set
            text = inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False)
            out[prefix + str(key)] = fmt.clip(text, 160)
    return out


def watch(runs: tuple[RunInfo, ...]) -> None:
    """Progress of the runs that are going on, read from their folders every two seconds.

    Nothing polls while nothing runs; when a run ends the whole page is read again.
    """
    going = [run for run in runs if run.state in ("running", "queued")]
    if not going:
        return

    @st.fragment(run_every=2)
    def lines() -> None:
        if any(Run(info.path).state != info.state for info in going):
            st.rerun()
        progress_table(going)

    lines()


def progress_table(going: list[RunInfo]) -> None:
    """How far each run is, as its folder says now."""
    rows = []
    for info in going:
        status = Run(info.path).status
        done, total, rate = status.get("done"), status.get("total"), status.get("rate")
        rows.append(
            (
                widgets.link(info.label, "run", url.params(id=info.id)),
                info.state,
                f"{fmt.count(done)} of {fmt.count(total)}",
                fmt.percent(done / total, 0) if done and total else fmt.NONE,
                f"{fmt.number(rate, 1)} a second" if rate else fmt.NONE,
                fmt.duration(status.get("eta_seconds")),
            )
        )
    head = ("Going on now", "State", "Done", "", "Rate", "Left")
    html.show(widgets.table(head, rows, name=""))
