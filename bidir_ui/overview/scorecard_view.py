"""The Overview's answer, three numbers and picture, and the scorecard: a row for each model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import streamlit as st

from bidir_core import jobs
from bidir_core.common.errors import UserError
from bidir_core.common.process import give_back
from bidir_core.jobs.cost_model import forget_tokenizer
from bidir_core.jobs.estimate import duration
from bidir_core.report.rows import interval_rows
from bidir_core.report.scorecard import Badge, Cell, Row, answer
from bidir_core.report.share import SIGNS, against_causal
from bidir_core.runs.layout import is_read_only
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.launch import review
from bidir_ui.launch.form import Draft
from bidir_ui.reading.data import RunInfo

LIMIT = 500  # of the smaller set of items that the switch asks for


# The first ten seconds.


def first_screen(row: Row) -> None:
    """One sentence, three numbers, one picture, all of one model on one set of items."""
    html.show(html.div("b b-answer", fmt.tie(answer(row))))
    cards = (
        ("Cost, points", row.hurt, ""),
        ("Back without training", row.without_training, ""),
        ("Repair beyond control", row.repair, row.extent),
    )
    html.show(html.div("b b-three", *(_card(*card) for card in cards)))
    if steps := against_causal(row):
        values = "; ".join(f"{step.label} {step.text}" for step in steps)
        short = [step._replace(text=fmt.points(step.value)) for step in steps]
        axis = fmt.tie(f"Points against causal, 95 % (n = {fmt.count(row.n)})")
        chart = interval_rows(short, reference=0.0, axis=axis)
        html.show(html.div("b b-steps", chart, role="img", aria_label=f"{axis}: {values}"))


def _card(title: str, cell: Cell | None, items: str) -> html.Html:
    """One number and, where it may be mistaken for another, on which ``items`` it is; the whole card
    leads to its runs."""
    if cell is None:
        return html.div("card", html.div("title", title), html.div("big off", "not run yet"))
    note = cell.reason.partition(":")[0] or items
    body = (
        html.div("title", title),
        html.div("big", fmt.points(cell.value)),
        html.div("sub", fmt.tie(f"{_interval(cell)} {note}".strip())),
    )
    return _link(cell, *body, cls="card")


def _interval(cell: Cell) -> str:
    return fmt.interval_of(cell.judgement.estimate)


def _link(cell: Cell, *body: object, cls: str) -> html.Html:
    """The body as a link to where its runs are read: a pair to Compare, a sweep to the Lab."""
    if len(cell.runs) == 2:
        return widgets.link(
            html.join(*body), "compare", {"a": cell.runs[0], "b": cell.runs[1]}, cls=cls
        )
    if len(cell.runs) == 1:
        return widgets.link(html.join(*body), "lab", {"sweep": cell.runs[0]}, cls=cls)
    return html.div(cls, *body)


# The scorecard.

QUESTIONS = {
    "hurt": "Hurt?",
    "why": "Why?",
    "repair": "Repair?",
    "helps": "Helps anywhere?",
}
# What makes a missing answer: the Launch page's stage and settings.
MISSING: dict[str, tuple[str, str, dict[str, str]]] = {
    "hurt": ("lab-sink", "published", {"sweep": "sink=1", "limit": "100"}),
    "why": ("lab-law", "published", {"limit": "100"}),
    "repair": ("pipeline", "quick", {}),
    "helps": ("lab-order", "published", {"limit": "200"}),
}


def table(rows: Sequence[Row], runs: tuple[RunInfo, ...]) -> None:
    """A row for each model, a column for each question; what is missing is one click away."""
    place = st.empty()
    with place:
        html.show(_table(rows, {}))
    times = _times(rows, runs)
    if times:  # counting items takes seconds: the table stands meanwhile
        with place:
            html.show(_table(rows, times))


def _table(rows: Iterable[Row], times: dict[tuple[str, str], str]) -> html.Html:
    head = html.el(
        "tr",
        html.el("th", "Model", scope="col", tabindex=0),
        *(html.el("th", q, scope="col", tabindex=0) for q in QUESTIONS.values()),
    )
    lines = [
        html.el(
            "tr",
            html.el("th", row.title, html.el("small", _items(row)), scope="row"),
            *(
                html.el("td", _cell(row, name, times.get((row.model, name), "")), data_q=question)
                for name, question in QUESTIONS.items()
            ),
        )
        for row in rows
    ]
    body = html.el("tbody", *lines)
    drawn = html.scrolling(html.el("table", html.el("thead", head), body, cls="b b-score"))
    return widgets.taken(drawn, "scorecard")


def _items(row: Row) -> str:
    if row.problem:
        return row.problem
    return fmt.tie(f"{'published, ' if row.published else ''}{row.extent}")


def _cell(row: Row, name: str, time: str) -> html.Html:
    cell: Cell | None = getattr(row, name)
    if cell is None:
        return _run(row, name, time)
    e = cell.judgement.estimate
    number = "" if math.isnan(cell.value) else f"{fmt.points(cell.value)} {_interval(cell)}"
    parts = [f"n = {fmt.count(e.n)}" if e else "", cell.reason.partition(":")[0]]
    n = ", ".join(filter(None, parts))
    marks = [_mark(claim, cell.badges) for claim in dict.fromkeys(b.claim for b in cell.badges)]
    return _link(
        cell,
        html.el("b", _sign(cell), cell.words),
        html.span("b-num", fmt.tie(number)),
        html.el("small", fmt.tie(n)),
        *marks,
        cls=f"cell {cell.judgement.verdict if cell.judgement.decided and cell.supported else 'open'}",
    )


def _sign(cell: Cell) -> str:
    """A verdict's shape, beside its words and colour."""
    verdict = cell.judgement.verdict if cell.supported else "undecided"
    return {"better": "▲ ", "worse": "▼ ", "equivalent": "= "}.get(verdict, "○ ")


SIDES = {"supports": "for", "refutes": "against", "undecided": "open"}


def _mark(claim: str, badges: Sequence[Badge]) -> html.Html:
    """What the controls say of one claim, counted; each one's finding in its tooltip."""
    controls = [badge for badge in badges if badge.claim == claim]
    counts = {outcome: sum(b.outcome == outcome for b in controls) for outcome in SIGNS}
    shown = ", ".join(f"{n} {SIDES[o]}" for o, n in counts.items() if n)
    words = f"{claim}: {shown}" if len(controls) > 1 else f"{SIGNS[controls[0].outcome]} {claim}"
    tooltip = "\n".join(f"{SIGNS[b.outcome]} {b.title}: {b.detail}" for b in controls)
    spoken = ", ".join(f"{n} {o}" for o, n in counts.items() if n)
    return html.span("mark", words, title=fmt.tie(tooltip), aria_label=f"{claim}: {spoken}")


def _run(row: Row, name: str, time: str) -> html.Html:
    if row.problem or is_read_only():
        return html.span("none", fmt.NONE if row.problem else "not run yet")
    stage, size, settings = MISSING[name]
    query = {"stage": stage, "f.model": row.model, **{f"f.{k}": v for k, v in settings.items()}}
    if size != "published":
        query["size"] = size
    return widgets.link(f"Run ({time})" if time else "Run", "launch", query, cls="run")


UNTIMED = "time unknown"


def _times(rows: Iterable[Row], runs: tuple[RunInfo, ...]) -> dict[tuple[str, str], str]:
    """How long each missing answer would take, in words."""
    if is_read_only():
        return {}
    n_known = sum(run.device == "cpu" for run in review.measured(runs)) + len(review.timed)
    times = {}
    for row in rows:
        missing = tuple(name for name in MISSING if getattr(row, name) is None)
        if missing and not row.problem:
            seconds = _seconds(row.model, missing, n_known, runs) if n_known else {}
            for name in missing:
                known = seconds.get(name)
                times[row.model, name] = f"about {duration(known)}" if known else UNTIMED
    return times


@st.cache_data(max_entries=16, show_spinner=False)
def _seconds(
    model: str, missing: Sequence[str], n_known: int, _runs: tuple[RunInfo, ...]
) -> dict[str, float]:
    """What each missing answer of a model would take, where that is known; asked again when more
    was measured."""
    known = {}
    for name in missing:
        stage, size, settings = MISSING[name]
        try:
            form = Draft(stage, size).check({"model": model, **settings})
            estimate = review.estimated(form, _runs, jobs.list_jobs())
        except (UserError, OSError, ValueError):
            continue
        if estimate is not None and estimate.seconds is not None:
            known[name] = estimate.seconds
    forget_tokenizer()  # of this model: the next one reads its own
    give_back()
    return known


DETAILS = {
    "Reading": "95 % intervals, paired item by item. ▲ better, ▼ worse, ○ undecided.",
    "Why?": "How many first layers must stay causal was chosen on half of the items and judged on the other half. The controls below could have refuted that the first token looking ahead is the cause, or that losing it is: ✓ supports, ✕ refutes, ○ leaves open.",
    "Repair?": "The repair fine-tune (3B) trains with the prompt looking ahead; its control (3C) has the same data, steps and seed, but the causal mask. The number is the interaction: how much more 3B leads 3C when looking ahead than under causal. It is on all items; the README's is on half.",
    "Helps anywhere?": "Tasks whose passage comes after the question: looking ahead minus causal, Holm-corrected over all tries. To count, it must also beat always giving one answer; the control is causal with the prompt given twice.",
}


@st.fragment
def details(rows: Sequence[Row]) -> None:
    """How to read the table, and what each control found, for those who cannot hover; sent when it is
    opened."""
    with st.expander(
        "Glossary, and what each control found", key="words", on_change="rerun"
    ) as fold:
        if not fold.open:
            return
        parts = [widgets.facts_html(DETAILS.items())]
        for row in rows:
            cells = filter(None, (row.why, row.repair, row.helps))
            badges = [badge for cell in cells for badge in cell.badges]
            found = [(f"{SIGNS[b.outcome]} {b.title}", fmt.tie(b.detail)) for b in badges]
            if found:
                summary = html.el("summary", f"Controls, {row.title} ({len(found)})")
                parts.append(html.el("details", summary, widgets.facts_html(found)))
        html.show(html.div("b b-fold", *parts))


def switch() -> None:
    """From the fullest set of items that each model has to the first 500 of each task."""
    url.bound(
        st.toggle,
        f"First {LIMIT} of each task",
        name="items",
        read=lambda text: text == str(LIMIT),
        write=lambda value: str(LIMIT) if value else "",
    )


def unfinished(runs: Iterable[RunInfo]) -> None:
    """Evaluations that are not in these numbers yet, or never will be."""
    damaged = [run for run in runs if run.state == "corrupt" and not run.is_point]
    partial = [r for r in runs if r.kind == "eval" and r.partial_note and r not in damaged]
    for run in [*damaged, *(run for run in partial if not run.is_point)][:2]:
        why = run.error if run in damaged else run.partial_note
        widgets.note(f"Not counted: {fmt.clip(f'{run.label}: {why}', 160)}.")
