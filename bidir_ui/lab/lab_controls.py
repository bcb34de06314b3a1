"""The control panel: what could have refuted the story, and what it showed."""

from __future__ import annotations

import shlex
from typing import Any

import pandas as pd
import streamlit as st

from bidir_core import jobs
from bidir_core.analyse.verdict import phrase
from bidir_core.data import item_texts
from bidir_core.explain.controls import largest_summary, with_observation
from bidir_core.explain.sweep_points import SINK
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL, in_words, parse_regime
from bidir_core.runs.layout import is_read_only
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.lab import lab_data, lab_view
from bidir_ui.lab.lab_data import Lab
from bidir_ui.masks import observed_data
from bidir_ui.reading.data import RunInfo

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
    widgets.heading("Controls that could refute the story")
    judged = list(lab.found.get("controls") or [])
    rows = answered(lab, runs, judged)
    if not judged:
        _not_run(lab, runs, observed=bool(rows))
    if not rows:
        return
    if judged:
        widgets.note(
            "The story: the damage comes from the first token looking ahead. What would refute it was "
            "fixed beforehand: a 95 % interval on the wrong side of half the damage."
        )
        _chart(lab)
    cells, refuted = [], html.span("b-phone", "Would refute it: ")
    for row in rows:
        cls, word = MARKS.get(row["outcome"], MARKS["open"])
        question = (html.el("b", row["title"]), html.el("br"), html.el("small", row["question"]))
        finding = fmt.tie(row["finding"])
        cells.append(
            (
                html.el("div", *question, style="min-width: 13rem"),
                html.span(cls + " b-nowrap", word),
                html.join(finding, " ", row["source"]) if row.get("source") else finding,
                html.el("div", refuted, row["refuted_by"], style="min-width: 11rem"),
            )
        )
    head = ("Control", "Outcome", "What it shows", "What would refute the story")
    html.show(
        html.div(
            "b-report b-cards",
            widgets.table(head, cells, name=f"controls_{lab.info.id}", left=(0, 1, 2, 3)),
        )
    )


def _not_run(lab: Lab, runs: tuple[RunInfo, ...], *, observed: bool) -> None:
    """That this sweep has no controls; another one of the model may, else how to run them.

    ``observed``: whether an attention summary answers one of them already.
    """
    sweeps = lab_data.sweeps(runs)
    elsewhere = next((sweep for sweep in sweeps if lab_data.has_controls(sweep, lab)), None)
    if elsewhere is not None:
        link = widgets.link(elsewhere.id, "lab", url.params(sweep=elsewhere.id))
        widgets.note("This sweep has none of its own. They were run for this model in ", link, ".")
        return
    commands = [
        f"python -m bidir_core lab --model {shlex.quote(lab.info.model)} --limit 50 --controls"
    ]
    text = "That one change removes the damage does not say why. "
    if observed:
        text += "One line asks what could refute the story; a part of it is answered below:"
    else:
        commands.append(command(lab))
        text += (
            "The first line asks what could refute the story; the second, whether attention ahead "
            "is still used under sink=1:"
        )
    widgets.not_run(text, *commands)
    if not is_read_only():
        query = {"stage": "lab-controls", "f.model": lab.info.model}
        widgets.page_link("launch", "Launch the controls", query, "play_circle")


def _short(point: dict[str, Any]) -> str:
    name = lab_data.name(point).removeprefix("bidirectional:")
    return name.removeprefix("bidirectional · ") if point.get("patch") else name


def _chart(lab: Lab) -> None:
    """The controls' points against the causal run of their own prompt."""
    rows = []
    for point in lab.points:
        judged = lab_data.judged(lab, point["slug"])
        swept = point["part"] == "sweep" and point["slug"] != lab_view.SINK
        if swept or judged is None or judged.estimate is None:
            continue
        rows.append(widgets.interval(_short(point), judged.estimate.value, judged))
    if rows:
        widgets.intervals(rows, "Macro accuracy, points to causal with the same prompt")


# The triviality control on the Lab page: an ``attend`` summary answers it beside the sweep itself.

ITEMS = 20  # of each task, for a summary: 100 items in all, some minutes on two cores


def answered(
    lab: Lab, runs: tuple[RunInfo, ...], judged: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The judged controls with what the largest fitting summary says, and where it is seen; or
    the line that would make one."""
    summary = largest_summary(lab.settings, observed_data.listed(runs))
    rows = with_observation(judged, summary.metrics if summary else None)
    for row in rows:
        if row["outcome"] == "missing":
            row["finding"] += " This line observes it, and the answer then stands here:"
            row["source"] = html.el("code", command(lab))
        elif row["name"] == "triviality" and summary is not None:
            link = widgets.link(summary.info.id, "masks", url.params(attend=summary.info.id))
            row["source"] = html.join("Seen in ", link, ".")
    return rows


def command(lab: Lab) -> str:
    """The line that makes a summary for this sweep's model and prompts."""
    words = ["attend", "--model", lab.info.model]
    for name in ("revision", "checkpoint"):
        words += [f"--{name}", str(lab.settings[name])] if lab.settings.get(name) else []
    words += ["--task", ",".join(map(str, lab.settings.get("tasks") or [])), "--limit", str(ITEMS)]
    for regime in (CAUSAL, BIDIRECTIONAL, SINK):
        words += ["--regime", str(regime)]
    if lab.settings.get("bos") not in (None, "auto"):
        words += ["--bos", str(lab.settings["bos"])]
    words += ["--chat-template"] if lab.settings.get("chat_template") else []
    return jobs.command_text(words)


# The Lab page's points: the chosen one in words, every one in a table, and where they open.

NO_ITEMS = "This sweep was kept for its numbers, without its items: Compare and Flips cannot open its points."


def point_card(lab: Lab, slug: str) -> None:
    """The chosen point in words, and where it opens."""
    point = lab.point(slug)
    if point is None:
        widgets.banner(
            "error",
            "Point not found",
            html.join(
                "This sweep has no finished point ", html.el("code", fmt.clip(slug, 100)), "."
            ),
        )
        return
    numbers, causal = lab.numbers(slug), lab.causal_of(point)
    accuracy = f"{fmt.percent(numbers.get('value'))}, n = {fmt.count(point['n'])}"
    rows = [("point", lab_data.name(point))]
    if meaning := in_words(parse_regime(point["regime"])):
        rows.append(("that is", meaning))
    rows.append(("accuracy", accuracy))
    judged = lab_data.judged(lab, slug)
    if judged is not None and judged.estimate is not None:
        delta = f"{fmt.points(judged.estimate.value)} points {fmt.interval_of(judged.estimate)}"
        mark = {"better": "▲ ", "worse": "▼ "}.get(judged.verdict, "")
        rows.append(("against causal", f"{delta}, {mark}{phrase(judged)}"))
        if slug != "bidirectional":
            rows.append(("in words", fmt.tie(lab_data.sentence(lab, slug))))
    with st.container(border=True, key="lab-point"):
        widgets.heading("The chosen point")
        widgets.facts(rows)
        if causal is None or causal["slug"] == slug:
            widgets.note("The reference itself: choose another point to compare it with this one.")
            return
        if not lab.has_items:
            widgets.note(NO_ITEMS)
            return
        plain = lab.point("bidirectional")
        with st.container(horizontal=True):
            _point_link("compare", "Compare with causal", "balance", lab, causal["slug"], slug)
            _point_link("flips", "Flips against causal", "swap_vert", lab, causal["slug"], slug)
            if plain and slug != "bidirectional" and plain["condition"] == point["condition"]:
                _point_link(
                    "flips", "Flips against bidirectional", "swap_vert", lab, "bidirectional", slug
                )


def _point_link(page: str, label: str, icon: str, lab: Lab, a: str, b: str) -> None:
    query = url.params(a=lab.run_id(a), b=lab.run_id(b))
    if page == "flips":
        query["flip"] = "broken~fixed"
    widgets.page_link(page, label, query, icon)


def table(lab: Lab, slug: str) -> None:
    """Every point with the numbers that the charts show. A click on a row chooses it."""
    every = lab_data.table(lab)
    names = [item_texts.visible(lab_data.name(point)) for point in lab.points]
    kinds = [f"_{kind}_{end}" for kind in ("delta", "removed") for end in ("value", "low", "high")]
    shares = {f"acc{kind}": 100 * every[lab.metric + kind].astype(float) for kind in ("", *kinds)}
    frame = pd.DataFrame({"point": names, "n": every["n"], **shares})

    def number(label: str, form: str | None, **more: Any) -> Any:
        return st.column_config.NumberColumn(label, format=form, **more)

    ends = {"help": "An end of the 95 % interval"}
    columns = {
        "point": st.column_config.TextColumn("Point", width=300),
        "n": number("n", "localized"),
        "acc": number("Macro, %", "%.1f"),
        "acc_delta_value": number("To causal, points", None),
        "acc_delta_low": number("Low", None, **ends),
        "acc_delta_high": number("High", None, **ends),
        "acc_removed_value": number("Damage removed, %", "%.0f"),
        "acc_removed_low": number("Low", "%.0f", **ends),
        "acc_removed_high": number("High", "%.0f", **ends),
    }
    key = f"points-{lab.info.id}-{lab.metric}-{slug}"  # another choice forgets the click
    alt = "Every point: accuracy, difference to causal and damage removed, with intervals."
    signed = [f"acc{kind}" for kind in kinds if "delta" in kind]
    picked = widgets.selectable(
        frame, columns, key=key, mode="single-row", tall=900, alt=alt, signed=signed
    )
    if picked.opened is not None:
        url.put(point=lab.points[picked.opened]["slug"])
        st.rerun()
    widgets.note("Click a row to choose the point; its links are above.")
    name = f"{lab.info.id.replace('/', '-')}.csv"
    with widgets.row():
        widgets.take_away(every, name, key="lab")
