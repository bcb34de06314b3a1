"""The control panel: what could have refuted the story, and what it showed."""

from __future__ import annotations

import shlex
from typing import Any

import pandas as pd
import streamlit as st

from bidir_core import jobs
from bidir_core.explain.controls import CONTROLS, largest_summary, observed, together
from bidir_core.explain.sweep_points import SINK
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL
from bidir_core.report import plots
from bidir_core.runs.layout import is_read_only
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.kit.html import Html
from bidir_ui.lab import lab_data, lab_view
from bidir_ui.lab.lab_data import Lab
from bidir_ui.masks import observed_data
from bidir_ui.masks.observed_data import Observed
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
    widgets.heading("Controls that could refute it")
    judged = list(lab.found.get("controls") or [])
    rows = answered(lab, runs, judged)
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
        commands.append(command(lab))
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


# The triviality control on the Lab page: an ``attend`` summary answers it beside the sweep itself.

NAMES = [control[0] for control in CONTROLS]

ITEMS = 20  # of each task, for a summary: 100 items in all, some minutes on two cores


def answered(
    lab: Lab, runs: tuple[RunInfo, ...], rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """A sweep's judged controls with what the largest fitting summary says of triviality."""
    summary = largest_summary(lab.settings, observed_data.listed(runs))
    own = next((row for row in rows if row["name"] == "triviality"), None)
    if summary is None and (own is not None or not rows):
        return rows
    others = [row for row in rows if row is not own]
    made = _row(lab, summary, own)
    place = sum(NAMES.index(row["name"]) < NAMES.index("triviality") for row in others)
    return [*others[:place], made, *others[place:]]


def _row(lab: Lab, summary: Observed | None, own: dict[str, Any] | None) -> dict[str, Any]:
    _, title, question, refuted_by, _ = CONTROLS[NAMES.index("triviality")]
    row = {"name": "triviality", "title": title, "question": question, "refuted_by": refuted_by}
    if summary is None:
        return row | {
            "outcome": "missing",
            "finding": "Not measured. This line observes it, and the answer then stands here:",
            "source": html.el("code", command(lab)),
        }
    answer = observed(summary.metrics)
    assert answer is not None
    outcome, finding = answer
    if own is not None:
        outcome = together(own["outcome"], outcome)
        finding = f"{own['finding']} On more items: {finding[0].lower()}{finding[1:]}"
    return row | {"outcome": outcome, "finding": finding, "source": _link(summary)}


def _link(summary: Observed) -> Html:
    href = url.href("masks", url.params(attend=summary.info.id))
    return html.join("Seen in ", html.el("a", summary.info.id, href=href, target="_self"), ".")


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
    return jobs.command_text(words + ["--chat-template"] * bool(lab.settings.get("chat_template")))


# The Lab page's points: the chosen one in words, every one in a table, and where they open.

NO_ITEMS = "This sweep was kept for its numbers, without its items: Compare and Flips cannot open its points."


def point_card(lab: Lab, slug: str) -> None:
    """The chosen point in words, and where it opens."""
    point = lab.point(slug)
    if point is None:
        widgets.banner(
            "error", "Point not found",
            html.join("This sweep has no finished point ", html.el("code", fmt.clip(slug, 100)), "."),
        )  # fmt: skip
        return
    numbers = lab.numbers(slug)
    delta = numbers.get("delta")
    causal = lab.causal_of(point)
    rows = [
        ("point", lab_data.name(point)),
        ("accuracy", f"{fmt.percent(numbers.get('value'))}, n = {fmt.count(point['n'])}"),
    ]
    if delta:
        rows.append(
            (
                "to causal",
                f"{fmt.points(delta['value'])} points {fmt.interval(delta['low'], delta['high'])}, "
                f"{widgets.direction(delta['low'], delta['high'])[1]}",
            )
        )
        if slug != "bidirectional":
            rows.append(("in words", fmt.tie(lab_data.sentence(lab, slug))))
    cells = [part for key, value in rows for part in (html.el("dt", key), html.el("dd", value))]
    with st.container(border=True, key="lab-point"):
        html.show(html.el("h2", "The chosen point", cls="b-h3"))
        html.show(html.el("dl", *cells, cls="b b-kv"))
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
    st.page_link(f"pages/{page}.py", label=label, icon=f":material/{icon}:", query_params=query)


def table(lab: Lab, slug: str) -> None:
    """The charts' twin: every point with its numbers, its intervals and its links."""
    rows = []
    for point in lab.points:
        one = point["slug"]
        numbers, causal = lab.numbers(one), lab.causal_of(point)
        delta, share = numbers.get("delta"), numbers.get("removed") or {}
        stated = share.get("value") is not None
        query = url.params(sweep=lab.info.id, point=one)
        title = html.el("a", lab_data.name(point), href=url.href("lab", query), target="_self")
        rows.append(
            (
                html.el("b", title) if one == slug else title, fmt.count(point["n"]),
                fmt.percent(numbers.get("value")),
                fmt.points(delta["value"]) if delta else fmt.NONE,
                fmt.interval(delta["low"], delta["high"]) if delta else fmt.NONE,
                fmt.percent(share.get("value"), 0),
                f"[{fmt.percent(share['low'], 0)}, {fmt.percent(share['high'], 0)}]" if stated else fmt.NONE,
                _links(lab, causal["slug"] if causal else "", one),
            )
        )  # fmt: skip
    head = (
        "Point", "n", "Macro", "To causal, points", "95 % interval", "Damage removed", "95 % interval",
        "Open",
    )  # fmt: skip
    html.show(widgets.table(head, rows, left=(0,)))


def download(lab: Lab) -> None:
    """Every number of every point; the file's name carries the sweep's id."""
    ident = lab.info.id.replace("/", "-")
    widgets.csv_button(lab_data.table(lab), f"{ident}.csv", key="lab-csv")


def _links(lab: Lab, causal: str, slug: str) -> html.Html | str:
    if not causal or causal == slug or not lab.has_items:
        return fmt.NONE
    query = url.params(a=lab.run_id(causal), b=lab.run_id(slug))
    flips = {**query, "flip": "broken~fixed"}
    return html.join(
        html.el("a", "Compare", href=url.href("compare", query), target="_self"), " · ",
        html.el("a", "Flips", href=url.href("flips", flips), target="_self"),
    )  # fmt: skip
