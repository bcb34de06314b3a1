"""The Flips page's filter row, counts and table."""

from __future__ import annotations

from itertools import pairwise

import pandas as pd
import streamlit as st

from bidir_core.analyse.flips import FLIPS
from bidir_core.data import item_texts
from bidir_ui.compare import compare_view
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.reading import filters
from bidir_ui.reading.filters import FlipFilter

MAX_ROWS = 10_000
MARGIN = (
    "In nats: log-likelihood of the right choice minus the best other. Moved: candidate minus "
    "baseline; the two columns beside it are the margins themselves."
)


def filter_row(frame: pd.DataFrame, chosen: FlipFilter) -> None:
    """Widgets whose values are in the URL; counts beside an option respect the other filters."""
    by_flip = filters.apply(frame, chosen, skip="flip")["flip"].value_counts()
    by_task = filters.apply(frame, chosen, skip="task")["task"].value_counts()
    tasks = list(dict.fromkeys([*frame["task"].unique(), *chosen.task]))
    url.bound(
        st.pills,
        "What happened",
        name="flip",
        selection_mode="multi",
        options=FLIPS,
        format_func=lambda name: f"{fmt.flip(name)}  {fmt.count(by_flip.get(name, 0))}",
        read=lambda _text: [name for name in chosen.flip if name in FLIPS],
        write=list,
        label_visibility="collapsed",
    )
    search, task, moved, length = st.columns([4, 3, 2, 2])
    with search:
        url.text(
            "Search the texts",
            name="q",
            max_chars=400,
            placeholder="words in the prompt or the choices",
        )
    with task:
        url.bound(
            st.multiselect,
            "Tasks",
            name="task",
            options=tasks,
            placeholder="all tasks",
            format_func=lambda name: (
                f"{item_texts.visible(fmt.task(name))} ({fmt.count(by_task.get(name, 0))})"
            ),
            read=lambda _text: list(chosen.task),
            write=list,
        )
    with moved:
        url.number(
            "Margin moved at least",
            name="min",
            default=0.0,
            least=0.0,
            most=1e6,
            step=0.5,
            format="%.1f",
            help="In nats, in either direction",
        )
    with length:
        low, high = int(frame["length"].min()), int(frame["length"].max())
        options = {"any": "", **lengths(low, high)}
        names = {value: name for name, value in options.items()}
        values = list(dict.fromkeys([*options.values(), chosen.len]))
        url.bound(
            st.selectbox,
            "Prefix tokens",
            name="len",
            options=values,
            read=str,
            write=lambda value: value or "",
            format_func=lambda value: names.get(value, value),
        )


def lengths(low: int, high: int) -> dict[str, str]:
    """Bands of prefix length that this data has: shown text -> ``A-B``."""
    edges = [0, 16, 32, 64, 128, 256, 10**9]
    out: dict[str, str] = {}
    if not high:  # neither run counted its tokens
        return out
    for start, stop in pairwise(edges):
        if start <= high and stop > low:
            name = f"{start} or more" if stop == 10**9 else f"{start} to {stop - 1}"
            out[name] = f"{start}-{stop - 1}"
    return out


def counts(frame: pd.DataFrame, shown: pd.DataFrame) -> None:
    """One line: how many items the filter keeps, and how they split."""
    tally = shown["flip"].value_counts()
    broken, fixed = int(tally.get("broken", 0)), int(tally.get("fixed", 0))
    filtered = ". Counts of a filtered list are not estimates." if len(shown) != len(frame) else ""
    html.show(
        html.div(
            "b",
            html.el("b", fmt.count(len(shown)), cls="b-num"),
            f" of {fmt.count(len(frame))} paired items: ",
            html.el("span", f"▼ {fmt.count(broken)} broken", cls="b-down"),
            ", ",
            html.el("span", f"▲ {fmt.count(fixed)} fixed", cls="b-up"),
            f", net {fmt.signed(fixed - broken, 0)}",
            html.el("span", filtered, style="opacity:.68"),
        )
    )


def table(shown: pd.DataFrame, key: str) -> str | None:
    """The rows; the id of the item just selected, if any."""
    rows = shown.head(MAX_ROWS)
    cells = pd.DataFrame(
        {
            "what": rows["flip"].map(fmt.flip),
            "task": rows["task"].map(lambda name: item_texts.visible(fmt.task(name))),
            "change": rows["change"],
            "margin_a": rows["margin_a"],
            "margin_b": rows["margin_b"],
            "id": rows["item_id"],
            "text": rows["text"],
        }
    )
    number, text = st.column_config.NumberColumn, st.column_config.TextColumn
    columns = {
        "what": text("What happened", width=116),
        "task": text("Task", width=104),
        "change": number("Margin moved", format="%+.2f", width=98, help=MARGIN),
        "margin_a": number("Baseline", format="%+.2f", width=76),
        "margin_b": number("Candidate", format="%+.2f", width=82),
        "id": text("Item", width=124),
        "text": text("Prompt"),
    }
    alt = "Items: what happened, task, margin change, margins in both runs, item id, prompt."
    picked = widgets.selectable(cells, columns, key=key, mode="single-row", tall=630, alt=alt)
    if len(shown) > MAX_ROWS:
        widgets.note(
            f"The first {fmt.count(MAX_ROWS)} of {fmt.count(len(shown))}; the CSV has all."
        )
    return None if picked.opened is None else str(cells["id"].iloc[picked.opened])


def download(shown: pd.DataFrame, a: str, b: str) -> None:
    """The filtered rows to take away, with both run ids in every row and in the file's name."""
    out = shown.drop(columns=["search"]).assign(run_a=a, run_b=b)
    widgets.take_away(out, compare_view.file_name("flips", a, b), key="flips")
