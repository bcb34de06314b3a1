"""The control panel: what could have refuted the story, and what it showed."""

from __future__ import annotations

import shlex
from typing import Any

import pandas as pd
import streamlit as st

from bidir_core import plots
from bidir_core.run_layout import is_read_only
from bidir_ui import fmt, html, lab_attention, lab_data, lab_view, url, widgets
from bidir_ui.data import RunInfo
from bidir_ui.lab_data import Lab

MARKS = {
    "supports": ("b-up", "● supports"),
    "refutes": ("b-down", "✕ refutes"),
    "partly": ("", "◐ partly"),
    "undecided": ("", "○ undecided"),
    "open": ("", "□ for information"),
    "missing": ("", "– not run"),
}


def panel(lab: Lab, runs: tuple[RunInfo, ...]) -> None:
    """One row a control: the question, what would refute the story, what was found."""
    widgets.heading("Controls that could refute it")
    judged = list(lab.found.get("controls") or [])
    rows = lab_attention.answered(lab, runs, judged)
    if not judged:
        _not_run(lab, runs, observed=bool(rows))
    if not rows:
        return
    if judged:
        widgets.note(
            "What refutes the story was fixed before looking; outcomes follow from 95 % intervals "
            "against the border of half the damage."
        )
        _chart(lab)
    cells = []
    for row in rows:
        cls, word = MARKS.get(row["outcome"], MARKS["open"])
        finding = fmt.tie(row["finding"])
        cells.append(
            (
                html.el(
                    "div", html.el("b", row["title"]), html.el("br"),
                    html.el("small", row["question"]), style="min-width: 13rem",
                ),
                html.span(cls + " b-nowrap", word),
                html.join(finding, " ", row["source"]) if row.get("source") else finding,
                html.el("div", row["refuted_by"], style="min-width: 11rem"),
            )
        )  # fmt: skip
    head = ("Control", "Outcome", "What it shows", "What would refute the story")
    html.show(html.div("b-report", widgets.table(head, cells, left=(0, 1, 2, 3))))


def _not_run(lab: Lab, runs: tuple[RunInfo, ...], *, observed: bool) -> None:
    """That this sweep has no controls; another one of the model may, else how to run them.

    ``observed``: whether an attention summary answers one of them already.
    """
    elsewhere = next(
        (one for one in lab_data.sweeps(runs) if lab_data.has_controls(one, lab)), None
    )
    if elsewhere is not None:
        link = html.el(
            "a", elsewhere.id, href=url.href("lab", url.params(sweep=elsewhere.id)), target="_self"
        )
        widgets.note("This sweep has none of its own. They were run for this model in ", link, ".")
        return
    commands = [
        f"python -m bidir_core lab --model {shlex.quote(lab.info.model)} --limit 50 --controls"
    ]
    said = "That one change removes the damage does not say why. "
    if observed:
        said += "One line asks what could refute the story; a part of it is answered below:"
    else:
        commands.append(lab_attention.command(lab))
        said += (
            "The first line asks what could refute the story; the second, whether attention ahead "
            "is still used under sink=1:"
        )
    widgets.not_run(said, *commands)
    if not is_read_only():
        query = {"stage": "lab-controls", "f.model": lab.info.model}
        st.page_link(
            "pages/launch.py", label="Launch the controls", icon=":material/play_circle:",
            query_params=query,
        )  # fmt: skip


def _short(point: dict[str, Any]) -> str:
    name = lab_data.name(point).removeprefix("bidirectional:")
    return name.removeprefix("bidirectional · ") if point.get("patch") else name


def _chart(lab: Lab) -> None:
    """The controls' points against the causal run of their own prompt."""
    rows = []
    for point in lab.points:
        delta = point[lab.metric]["delta"]
        swept = point["part"] == "sweep" and point["slug"] != lab_view.SINK
        if swept or not delta:
            continue
        low, high = delta["low"], delta["high"]
        colour, symbol = plots.GREY, "circle"
        if low > 0 or high < 0:
            colour, symbol = (
                (plots.RED, "triangle-left") if high < 0 else (plots.GREEN, "triangle-right")
            )
        rows.append(
            {
                "label": fmt.clip(_short(point), 40),
                "value": delta["value"], "low": low, "high": high, "colour": colour,
                "symbol": symbol,
                "text": f"{fmt.points(delta['value'])}  {fmt.interval(low, high)}",
            }
        )  # fmt: skip
    if rows:
        title = "Macro accuracy to causal with the same prompt, points (95 % interval)"
        widgets.chart(
            plots.dots(pd.DataFrame(rows), title=title, reference=0.0),
            "The controls' points against causal; the table of every point has the numbers.",
            key=f"controls-{lab.info.id}-{lab.metric}",
        )
