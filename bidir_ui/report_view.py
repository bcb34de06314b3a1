"""The Report page's parts: which runs and sections, and the preview."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import streamlit as st

from bidir_core import report as core
from bidir_core import store
from bidir_core.reporting import html_page
from bidir_core.reporting.arms import CAUSAL
from bidir_core.reporting.charts import Chart, charts
from bidir_core.reporting.markdown import Table
from bidir_core.reporting.section import ALL_SECTIONS, FLIPS, Section
from bidir_core.run_layout import EVAL_DIRS, FINETUNE_DIRS
from bidir_ui import data, fmt, html, pair, url, widgets
from bidir_ui.data import RunInfo
from bidir_ui.shell import Page

SHORT = {
    "scope": "Scope", "stages": "Stages", "macro": "Macro", "per_task": "Per task",
    "answers": "Answers", "non_prefill": "Non-prefill", "two_by_two": "2x2",
    "differences": "Differences", "churn": "Churn", "leaky": "Leaky 3A", "training": "Training",
    "curve": "Recovery", "cost": "Cost", "artifacts": "Artifacts", FLIPS: "Flips (HTML only)",
}  # fmt: skip
ALL, MINE = "fullest", "mine"
STAGES = (*EVAL_DIRS, *FINETUNE_DIRS.values())
NO_SECTION = "none"  # in the URL: an absent parameter means all of them
HEAD_START = 0.8  # seconds in which a browser draws the first chart
Part = html.Html | Chart


@dataclass(frozen=True)
class Made:
    """A report, the key it is remembered by, and the sections the reader wants (None: all)."""

    report: core.Report
    key: str
    only: tuple[str, ...] | None = None

    @property
    def available(self) -> list[str]:
        """Keys of the sections this report has, the flips included."""
        return [*(section.key for section in self.report.sections), FLIPS]

    @property
    def shown(self) -> list[str]:
        return [key for key in self.available if self.only is None or key in self.only]

    @property
    def parts(self) -> dict[str, tuple[Part, ...]]:
        """What stands in its sections, remembered apart for light and dark, since showing a chart
        colours it."""
        return _parts(self.report, self.key, str(st.context.theme.type))

    @property
    def has_charts(self) -> bool:
        return any(isinstance(part, Chart) for parts in self.parts.values() for part in parts)


@st.cache_resource(max_entries=6, show_spinner="Computing the report")
def _report(paths: tuple[str, ...], model: str, metric: str, stamp: str) -> core.Report:
    named = [store.Run(path) for path in paths]
    return core.build_report(named or None, model=model or None, metric=metric)


@st.cache_resource(max_entries=12, show_spinner=False)
def _parts(_report: core.Report, key: str, theme: str) -> dict[str, tuple[Part, ...]]:
    drawn = charts(_report)
    return {
        section.key: tuple(_section(section, drawn.get(section.key, [])))
        for section in _report.sections
    }


def build(page: Page, chosen: Sequence[RunInfo], metric: str) -> Made:
    """The report on these runs or, without any, on the fullest set of the chosen pair's model.

    Remembered until a finished run comes, goes or changes. UserError if there is nothing to say.
    """
    known = [(run.id, run.modified) for run in page.runs if usable(run)]
    stamp = hashlib.sha256(repr(known).encode()).hexdigest()
    model = "" if chosen or page.pair.a is None else page.pair.a.model
    asked = (tuple(run.path for run in chosen), model, metric, stamp)
    return Made(_report(*asked), repr(asked))


def usable(run: RunInfo) -> bool:
    """Whether a report can speak of it: finished or published, and a stage of the study."""
    return (run.is_done or run.is_reference) and run.stage in STAGES


# --- what to report on ---------------------------------------------------------------------------


def chosen_runs(page: Page) -> list[RunInfo] | None:
    """The runs named in the URL; empty for the fullest set. None if one of them does not exist."""
    found = [(run_id, data.by_id(page.runs, run_id)) for run_id in url.get_list("runs")]
    unknown = [run_id for run_id, run in found if run is None]
    if unknown:
        pair.explain_if_missing(page.runs, pair.Pair(None, None, unknown=tuple(unknown)))
        st.button("Report on the model's fullest set instead", key="report-fullest",
                  on_click=lambda: url.put(runs=""))  # fmt: skip
        return None
    if not found and page.pair.unknown:
        pair.explain_if_missing(page.runs, page.pair)
        return None
    return [run for _, run in found if run is not None]


def runs_box(page: Page, chosen: Sequence[RunInfo], made: Made | None) -> None:
    """The fullest set of a model, or runs of one's own choice."""
    in_it = [run.id for run in made.report.study.all_runs] if made else []
    url.bound(
        st.segmented_control, "Runs", name="runs", options=[ALL, MINE], required=True,
        format_func={ALL: "The model's fullest set", MINE: "My choice"}.get,
        read=lambda text: MINE if text else ALL,
        write=lambda value: "~".join(in_it) if value == MINE else "",
        help="The fullest set: of the baseline's model, the finished runs over the same items that "
        "fill most stages. The same as `report` without run ids in a terminal.",
    )  # fmt: skip
    if not chosen:
        return
    options = [run.id for run in page.runs if usable(run)]
    options += [run.id for run in chosen if run.id not in options]
    st.session_state["report-runs"] = [run.id for run in chosen]

    def changed() -> None:
        url.put(runs=st.session_state["report-runs"])

    st.multiselect(
        "Chosen runs", options, key="report-runs", on_change=changed,
        format_func=partial(_run_label, page.runs), label_visibility="collapsed",
        placeholder="choose runs; none: the fullest set again",
    )  # fmt: skip


def _run_label(runs: tuple[RunInfo, ...], run_id: str) -> str:
    run = data.by_id(runs, run_id)
    text = run_id if run is None else f"{run.label} {run.name} {run.model.split('/')[-1]}"
    return html.visible(fmt.clip(text, 80))


def sections_box(made: Made) -> Made | None:
    """Which sections to show and to write. None if the URL names one that does not exist."""
    everything = made.available
    wanted = [key for key in url.get_list("sections") if key != NO_SECTION]
    unknown = [key for key in wanted if key not in ALL_SECTIONS]
    if unknown:
        widgets.banner(
            "error", "Section not found",
            html.join("No section is called ", html.el("code", fmt.clip(unknown[0], 60)), "."),
            f"There are: {', '.join(everything)}.",
        )  # fmt: skip
        return None
    url.bound(
        st.pills, "Sections", name="sections", options=everything, selection_mode="multi",
        format_func=lambda key: SHORT.get(key, key),
        read=lambda text: everything if not text else [k for k in everything if k in wanted],
        write=lambda value: (
            "" if set(everything) <= set(value) else "~".join(k for k in everything if k in value)
        ) if value else NO_SECTION,
    )  # fmt: skip
    return replace(made, only=tuple(wanted)) if url.get("sections") else made


def remarks(page: Page, report: core.Report) -> None:
    """What is not in the report although a reader may expect it."""
    going = [
        run for run in page.runs
        if run.model == report.study.model and run.stage in STAGES and not usable(run)
    ]  # fmt: skip
    if going:
        lines = [f"{run.id} ({run.state})" for run in going[:5]]
        more = f" and {len(going) - 5} more" if len(going) > 5 else ""
        widgets.banner(
            "info", "Partial: unfinished runs of this model are not in the report",
            ", ".join(lines) + more + ".",
        )  # fmt: skip
    left_out = report.study.left_out
    if left_out:
        widgets.note(
            f"{len(left_out)} finished run{'s' if len(left_out) > 1 else ''} left out, with the "
            "reason: at the end of Artifacts."
        )


# --- preview ---------------------------------------------------------------------------------


def preview(made: Made) -> None:
    """The chosen sections as the files have them."""
    waiting: list[html.Html] = []  # shown together: a page of few large elements opens sooner

    def flush() -> None:
        if waiting:
            html.show(html.div("b-report", *waiting))
            waiting.clear()

    for key in made.shown:
        for part in made.parts.get(key, ()):
            if isinstance(part, Chart):
                flush()
                widgets.chart(
                    part.figure, part.alt, save_as=f"{made.report.stem}_{part.key}",
                    key=f"report-{part.key}",
                )  # fmt: skip
                _first_chart_first()
            else:
                waiting.append(part)
    flush()
    if FLIPS in made.shown:
        html.show(html.el("h2", ALL_SECTIONS[FLIPS], cls="b-h2 b-rule"))
        widgets.note(
            "The HTML file lists the items whose right answer's margin moved most, with their "
            "choices and both log-likelihoods. Here they have a page of their own:"
        )
        query = url.params(flip="broken~fixed", **_bent_pair(made.report))
        st.page_link(
            "pages/flips.py", label="Flips", icon=":material/swap_vert:", query_params=query
        )


def _bent_pair(report: core.Report) -> dict[str, str]:
    """Stage 1 and stage 2 of this report, which need not be the chosen pair, if they pair."""
    study = report.study
    found = [list(study.runs(study.base, regime).values()) for regime in (CAUSAL, study.regime)]
    if not all(runs and runs[0].has_items for runs in found):
        return {}
    return {"a": found[0][0].id, "b": found[1][0].id}


def _first_chart_first() -> None:
    """A browser draws all that has arrived before it shows any of it, and four charts and long
    tables take it a while. So when a reader comes, what is below the first chart comes later."""
    if not st.session_state.get("report-opened"):
        st.session_state["report-opened"] = True
        time.sleep(HEAD_START)


def _section(section: Section, drawn: list[Chart]) -> Iterator[Part]:
    yield html.el("h2", section.heading, cls="b-h2 b-rule")
    for block in html_page.blocks(section, drawn):
        if isinstance(block, Chart):
            yield html.div("b", html.el("b", block.title))
            yield block
        else:
            yield _table(block) if isinstance(block, Table) else html.div("b", html.built(block))


def _table(table: Table) -> html.Html:
    kinds = [column.kind for column in table.columns]
    left = [i for i, kind in enumerate(kinds) if kind in ("text", "code")]
    rows = [
        [_cell(text, kind) for text, kind in zip(row, kinds, strict=True)] for row in table.texts()
    ]
    shown = widgets.table([column.name for column in table.columns], rows, left=left)
    if len(rows) > html_page.FOLDED:
        words = f"Table, {len(rows)} rows"
        shown = html.el("details", html.el("summary", words), shown, cls="b b-fold")
    return shown


def _cell(text: str, kind: str) -> object:
    if kind == "code":
        long = len(text) > html_page.LONG
        return html.el("span", text, cls="b-mono b-long" if long else "b-mono")
    return text if kind == "text" else html_page.tied(text)
