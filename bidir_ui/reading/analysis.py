"""Cached comparisons for the pages. What is computed here is in bidir_core.analyse.compare; these
functions only remember it, keyed on run ids and change times, and shape it for display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from bidir_core.analyse import compare as core_compare
from bidir_core.analyse import flips as core_flips
from bidir_core.analyse.pairing import repeats
from bidir_core.common.errors import UserError
from bidir_core.data import item_texts, tasks
from bidir_core.runs.run import Run
from bidir_ui.kit import fmt, url, widgets
from bidir_ui.reading import data
from bidir_ui.reading.data import BY_CHANGE, RunInfo

SEARCHED = 2000  # characters of a text that the search looks at


@st.cache_data(max_entries=64, show_spinner=False, hash_funcs=BY_CHANGE)
def compare(
    a: RunInfo,
    b: RunInfo,
    metric: str = "acc",
    *,
    intersect: bool = False,
    floor: RunInfo | None = None,
) -> core_compare.Comparison:
    """The comparison of two runs; UserError (with the reason) for runs that do not pair."""
    below = data.run_of(floor) if floor else None
    first, second = data.run_of(a), data.run_of(b)
    return core_compare.compare(first, second, metric=metric, intersect=intersect, floor=below)


def intersecting() -> bool:
    """Whether the reader asked to compare only the items both runs hold."""
    return url.get("intersect") == "yes"


def offer_intersection(error: UserError) -> None:
    """Say why two runs do not pair and, where it helps, offer the items they share."""
    reason = str(error).replace("; --intersect compares only the items both hold", "")
    widgets.banner("error", "These two runs do not pair", reason)
    if "--intersect" in str(error) and st.button(
        "Compare only the items both hold", key="intersect"
    ):
        url.put(intersect="yes")
        st.rerun()


# Shared between sessions, not copied: nobody writes to it, and copying 14,000 rows with their
# texts on every click costs more than filtering them.
@st.cache_resource(max_entries=12, show_spinner=False, hash_funcs=BY_CHANGE)
def _flips(a: RunInfo, b: RunInfo, metric: str, intersect: bool) -> pd.DataFrame:
    run_a, run_b = data.run_of(a), data.run_of(b)
    frame = core_flips.flips(run_a, run_b, metric, intersect=intersect)
    out = pd.DataFrame(
        {
            "item_id": frame["item_id"],
            "task": frame["task"],
            "flip": frame["flip"],
            "change": frame["margin_change"],
            "margin_a": frame["margin_a"],
            "margin_b": frame["margin_b"],
            "length": frame["n_prefix_tokens"].astype("int64"),
            "gold": frame["gold"].astype("int64"),
            "gold_length": frame["n_gold_tokens"].astype("int64"),
        }
    )
    full_texts = _texts(run_a, run_b, frame)
    out["text"] = [item_texts.visible(fmt.clip(context)) for context, _ in full_texts]
    out["search"] = [
        f"{item} {context[:SEARCHED]} {choices[:SEARCHED]}".casefold()
        for item, (context, choices) in zip(out["item_id"], full_texts, strict=True)
    ]
    order = out["change"].abs().sort_values(ascending=False, kind="stable").index
    return out.loc[order].reset_index(drop=True)


def _texts(run_a: Run, run_b: Run, frame: pd.DataFrame) -> list[tuple[str, str]]:
    """(context, choices in one string) per row; empty strings where nobody has them."""
    for run in (run_a, run_b):
        if run.is_compact:
            continue
        items = run.items(["task", "doc_id", "contexts", "continuations"])
        if items["contexts"].notna().any():
            keys = items["task"] + "/" + items["doc_id"].astype("str")
            texts_of = {
                key: ("" if c is None else str(c[0]), "" if t is None else " ".join(map(str, t)))
                for key, c, t in zip(keys, items["contexts"], items["continuations"], strict=True)
            }
            return [texts_of.get(item, ("", "")) for item in frame["item_id"]]
    split = str(run_a.settings.get("split") or "validation")
    by_task = {
        task: texts(str(task), part["doc_id"].tolist(), split, repeats(run_a.settings))
        for task, part in frame.groupby("task", sort=False)
    }
    out = []
    for task, row in zip(frame["task"], frame["doc_id"], strict=True):
        _, (contexts, choices) = by_task[task].get(int(row), ("", (("",), ())))
        out.append((contexts[0], " ".join(choices)))
    return out


def flips(a: RunInfo, b: RunInfo, metric: str) -> pd.DataFrame:
    """All paired items, largest margin change first. Columns: item_id, task, flip, change,
    margin_a, margin_b, length, text (120 characters), search."""
    with widgets.waiting("Pairing the items of both runs", 60, 560):
        return _flips(a, b, metric, intersecting())


def remarks(a: RunInfo, b: RunInfo) -> None:
    """What to know before reading numbers of this pair."""
    for run in (a, b):
        if run.partial_note:
            widgets.banner("info", "Partial", f"{run.label} is {run.partial_note}.")
        for caution in run.cautions:
            widgets.banner("info", *caution)
    if intersecting():
        widgets.banner("info", "Intersected", "Only the items that both runs hold are compared.")


def record_with_texts(run: RunInfo, item_id: str) -> dict[str, Any] | None:
    """One record, with its texts joined back if the run kept none and the data are here."""
    record = data.record(run, item_id)
    if record is not None:
        settings = data.run_of(run).settings
        if str(settings.get("context") or "full") == "full":
            fill(record, settings)
    return record


MOST_ANSWERS, MOST_READ = 24, 200  # runs that an item's page lists, and reads to find them


def every_answer(
    page: Any, item_id: str, record: dict[str, Any]
) -> list[tuple[str, dict[str, Any] | None, bool]]:
    """(label, record, is in the pair) of the pair and of other runs that hold this very item with its
    scores: at most MOST_ANSWERS, those of the same model and the newest first."""
    chosen = (page.pair.a.id, page.pair.b.id)
    candidates = [
        run
        for run in page.runs
        # A sweep's points are many; the Lab page compares them.
        if (run.id in chosen or not run.is_point)
        and run.can_pair
        and record["task"] in (run.tasks or [record["task"]])
    ]
    candidates.sort(key=lambda run: (run.id not in chosen, run.model != page.pair.a.model))
    held: list[tuple[RunInfo, dict[str, Any]]] = []
    without: set[tuple[Any, int]] = set()  # sets of items without this one
    for run in candidates[:MOST_READ]:
        if (run.item_set, run.n_items) in without:
            continue
        try:
            answer = data.record(run, item_id)
        except (UserError, OSError, ValueError):
            continue
        if answer is None and run.is_done:
            without.add((run.item_set, run.n_items))
        if answer is None or (answer["ll"] is None and not answer["error"]):
            continue
        if answer["doc_hash"] == record["doc_hash"]:
            held.append((run, answer))
        if len(held) == MOST_ANSWERS:
            break

    def label(run: RunInfo) -> str:
        model = "" if run.model == page.pair.a.model else f" · {run.model.split('/')[-1]}"
        return run.label + model + ("" if run.is_done else f" ({run.state})")

    extra = data.apart((run for run, _ in held), label)
    rows: list[tuple[str, dict[str, Any] | None, bool]] = [
        (label(run) + extra[run.id], answer, run.id in chosen) for run, answer in held
    ]
    return sorted(rows, key=lambda row: (not row[2], row[0]))


def plain(value: Any) -> Any:
    """Arrow's and numpy's values as JSON has them."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else str(value)


# Texts of items whose run kept none (``--compact``), remembered while the app runs.

MISSING = (
    "This run kept no texts (--compact), and the evaluation data are not in this machine's cache. "
    "`python -m bidir_core assets fetch eval-data` brings them; nothing is fetched from here."
)


# Asked before the cache, so that "not here" is not remembered.
def texts(
    task: str, rows: Sequence[int], split: str = "validation", repeat_prompt: int = 1
) -> item_texts.Found:
    """doc_id -> (doc_hash, texts) of built-in tasks; empty where the data are not here."""
    if task not in tasks.TASKS or not len(rows) or not item_texts.data_are_here():
        return {}
    return _by_row(task, tuple(int(row) for row in rows), split, repeat_prompt)


@st.cache_resource(max_entries=12, show_spinner=False)
def _by_row(task: str, rows: tuple[int, ...], split: str, repeat_prompt: int) -> item_texts.Found:
    return item_texts.load(task, rows, split, repeat_prompt)


def fill(record: dict[str, Any], settings: Mapping[str, Any]) -> bool:
    """Put the texts into a record that has none; False if they cannot be had or do not match.

    ``settings``: of the run that the record is from.
    """
    if record["contexts"] is not None and record["continuations"] is not None:
        return True
    split = str(settings.get("split") or "validation")
    known = texts(record["task"], [record["doc_id"]], split, repeats(settings))
    return item_texts.fill(record, known)


def cut_into_tokens(text: str, offsets: Sequence[Sequence[int]] | None) -> list[str]:
    """The text in token pieces. Characters no token claims go with the token that follows."""
    if offsets is None or not len(offsets):
        return [text] if text else []
    pieces, position = [], 0
    for _start, end in offsets:
        end = max(min(int(end), len(text)), position)
        pieces.append(text[position:end])
        position = end
    if position < len(text):
        pieces[-1] += text[position:]
    return pieces


def choice_context(record: dict[str, Any], choice: int) -> int:
    """Index of the context in front of a choice: 0, or the choice's own (winogrande)."""
    return choice if len(record["contexts"] or [None]) > 1 else 0
