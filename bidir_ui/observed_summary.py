"""Averages over items on the Masks page: what only they have, task by task and the drift."""

from __future__ import annotations

from typing import Any

import streamlit as st

from bidir_core import attend_plots
from bidir_core.attend_plots import Line
from bidir_ui import fmt, html, widgets
from bidir_ui.observed_data import Observed


def by_task(one: Observed, measure: str) -> None:
    """The measure in each task under each regime, with its interval."""
    tasks = one.metrics["n_by_task"]
    if len(tasks) < 2:
        return
    widgets.heading("By task")
    entries = one.metrics["observed"]
    rows = [
        (
            fmt.task(task),
            fmt.count(n),
            *(_cell(e["by_task"][task][measure], measure) for e in entries),
        )
        for task, n in tasks.items()
    ]
    everything = (_cell(entry["overall"]["prefix"][measure], measure) for entry in entries)
    rows.append(("all items", fmt.count(one.metrics["n_items"]), *everything))
    html.show(widgets.table(("Task", "n", *one.names), rows, total=True, left=(0,)))
    widgets.note("Mean over layers, heads and items, with its 95 % interval over items.")


def _cell(row: dict[str, Any], measure: str) -> str:
    if not row["mean"]:
        return fmt.NONE
    ends = [row[end][0] if row[end] else None for end in ("mean", "low", "high")]
    mean, low, high = (
        fmt.NONE if end is None else f"{end:.2f}" if measure == "entropy" else fmt.percent(end)
        for end in ends
    )
    return f"{mean} [{low}, {high}]" if ends[1] is not None else mean


def drift(one: Observed) -> None:
    """Lengths of the hidden states, and how far they turn from the first regime's."""
    found = one.metrics.get("drift") or {}
    widgets.heading("How far the representations drift")
    lengths = _lines(found, "norm", list(enumerate(one.names)), ("first", "others"))
    left, right = st.columns(2, gap="large")
    with left:
        widgets.chart(
            attend_plots.by_layer(
                lengths, "length of the hidden state", groups=2, log=True, percent=False
            ),
            "Length of the first token's hidden state by layer, and of the others', over items.",
            key="attend-norms",
        )
    with right:
        later = list(enumerate(one.names))[1:]
        cosines = _lines(found, "cosine", later, ("first", "others"))
        if cosines:
            widgets.chart(
                attend_plots.by_layer(
                    cosines, f"cosine with {one.names[0]}", groups=2, skipped=1, percent=False
                ),
                f"Cosine similarity of hidden states with those under {one.names[0]}, by layer.",
                key="attend-cosine",
            )
    widgets.note("First: the prefix's first token; others: its other tokens. Lengths are geometric "
                 "means over items; bands: 95 % interval over items. Equal lines cover one another: "
                 "a first token that is kept causal has the same states as under causal.")  # fmt: skip


def _lines(
    found: dict[str, Any], what: str, names: list[tuple[int, str]], groups: tuple[str, ...]
) -> list[Line]:
    lines = []
    for whose in groups:
        for number, name in names:
            row = found.get(f"{what}_{number}_{whose}") or {}
            if row.get("mean"):
                lines.append(Line(f"{whose}, {name}", row["mean"], row["low"], row["high"]))
    return lines
