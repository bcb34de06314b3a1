"""The Report page's parts: which runs and sections, and the preview."""

from __future__ import annotations

import hashlib
import io
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import streamlit as st

from bidir_core.analyse.study import CAUSAL
from bidir_core.data import item_texts
from bidir_core.report import html_page, paper_figures, report, sections
from bidir_core.report.charts import Chart, charts
from bidir_core.report.markdown import Table
from bidir_core.report.sections import ALL_SECTIONS, FLIPS, Section
from bidir_core.runs.layout import EVAL_DIRS, FINETUNE_DIRS
from bidir_core.runs.run import Run
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.kit.report_table import report_table
from bidir_ui.reading import data, pair
from bidir_ui.reading.data import RunInfo
from bidir_ui.shell import Page, guard

SHORT = {
    "scope": "Scope",
    "stages": "Stages",
    "macro": "Macro",
    "per_task": "Per task",
    "answers": "Answers",
    "non_prefill": "Non-prefill",
    "two_by_two": "2x2",
    "differences": "Differences",
    "churn": "Churn",
    "leaky": "Leaky 3A",
    "training": "Training",
    "curve": "Recovery",
    "cost": "Cost",
    "artifacts": "Artifacts",
    FLIPS: "Flips (HTML only)",
}

ALL, MINE = "fullest", "mine"

STAGES = (*EVAL_DIRS, *FINETUNE_DIRS.values())

NO_SECTION = "none"  # in the URL: an absent parameter means all of them

HEAD_START = 0.8  # seconds in which a browser draws the first chart

Part = html.Html | Chart


@dataclass(frozen=True)
class Made:
    """A report, the key it is remembered by, and the sections the reader wants (None: all)."""

    report: sections.Report
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
def _report(paths: tuple[str, ...], model: str, metric: str, stamp: str) -> sections.Report:
    named = [Run(path) for path in paths]
    return report.build_report(named or None, model=model or None, metric=metric)


@st.cache_resource(max_entries=12, show_spinner=False)
def _parts(_report: sections.Report, key: str, theme: str) -> dict[str, tuple[Part, ...]]:
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
    named = [(run_id, data.by_id(page.runs, run_id)) for run_id in url.get_list("runs")]
    unknown = [run_id for run_id, run in named if run is None]
    if unknown:
        pair.explain_if_missing(page.runs, pair.Pair(None, None, unknown=tuple(unknown)))
        st.button(
            "Report on the model's fullest set instead",
            key="report-fullest",
            on_click=lambda: url.put(runs=""),
        )
        return None
    if not named and page.pair.unknown:
        pair.explain_if_missing(page.runs, page.pair)
        return None
    return [run for _, run in named if run is not None]


def runs_box(page: Page, chosen: Sequence[RunInfo], made: Made | None) -> None:
    """The fullest set of a model, or runs of one's own choice."""
    in_it = [run.id for run in made.report.study.all_runs] if made else []
    url.bound(
        st.segmented_control,
        "Runs",
        name="runs",
        options=[ALL, MINE],
        required=True,
        format_func={ALL: "The model's fullest set", MINE: "My choice"}.get,
        read=lambda text: MINE if text else ALL,
        write=lambda value: "~".join(in_it) if value == MINE else "",
        help="The fullest set: of the baseline's model, the finished runs over the same items that "
        "fill most stages. The same as `report` without run ids in a terminal.",
    )
    if not chosen:
        return
    options = [run.id for run in page.runs if usable(run)]
    options += [run.id for run in chosen if run.id not in options]
    st.session_state["report-runs"] = [run.id for run in chosen]

    def changed() -> None:
        url.put(runs=st.session_state["report-runs"])

    st.multiselect(
        "Chosen runs",
        options,
        key="report-runs",
        on_change=changed,
        format_func=partial(_run_label, page.runs),
        label_visibility="collapsed",
        placeholder="choose runs; none: the fullest set again",
    )


def _run_label(runs: tuple[RunInfo, ...], run_id: str) -> str:
    run = data.by_id(runs, run_id)
    text = run_id if run is None else f"{run.label} {run.name} {run.model.split('/')[-1]}"
    return item_texts.visible(fmt.clip(text, 80))


def sections_box(made: Made) -> Made | None:
    """Which sections to show and to write. None if the URL names one that does not exist."""
    everything = made.available
    wanted = [key for key in url.get_list("sections") if key != NO_SECTION]
    unknown = [key for key in wanted if key not in ALL_SECTIONS]
    if unknown:
        widgets.banner(
            "error",
            "Section not found",
            html.join("No section is called ", html.el("code", fmt.clip(unknown[0], 60)), "."),
            f"There are: {', '.join(everything)}.",
        )
        return None
    url.bound(
        st.pills,
        "Sections",
        name="sections",
        options=everything,
        selection_mode="multi",
        format_func=lambda key: SHORT.get(key, key),
        read=lambda text: everything if not text else [k for k in everything if k in wanted],
        write=lambda value: (
            ("" if set(everything) <= set(value) else "~".join(k for k in everything if k in value))
            if value
            else NO_SECTION
        ),
    )
    return replace(made, only=tuple(wanted)) if url.get("sections") else made


def remarks(page: Page, report: sections.Report) -> None:
    """What is not in the report although a reader may expect it."""
    going = [
        run
        for run in page.runs
        if run.model == report.study.model and run.stage in STAGES and not usable(run)
    ]
    if going:
        lines = [f"{run.id} ({run.state})" for run in going[:5]]
        more = f" and {len(going) - 5} more" if len(going) > 5 else ""
        widgets.banner(
            "info",
            "Partial: unfinished runs of this model are not in the report",
            ", ".join(lines) + more + ".",
        )
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
                    part.figure,
                    part.alt,
                    save_as=f"{made.report.stem}_{part.key}",
                    key=f"report-{part.key}",
                )
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
        widgets.page_link("flips", "Flips", query, "swap_vert")


def _bent_pair(report: sections.Report) -> dict[str, str]:
    """Stage 1 and stage 2 of this report, which need not be the chosen pair, if they pair."""
    study = report.study
    sides = [list(study.runs(study.base, regime).values()) for regime in (CAUSAL, study.regime)]
    if not all(runs and runs[0].has_items for runs in sides):
        return {}
    return {"a": sides[0][0].id, "b": sides[1][0].id}


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
        elif isinstance(block, Table):
            yield report_table(block)
        else:
            yield html.div("b", html.built(block))


# The Report page's files. Each is made when it is asked for, and not before.


def downloads(made: Made) -> None:
    """Files that are made when they are asked for; their names carry run ids."""
    report, only = made.report, made.only
    tables = report.chosen_tables(only)
    files: list[tuple[str, str, str, Callable[[], bytes], bool]] = [
        ("HTML", ".html", "text/html", lambda: html_page.page(report, only).encode(), True),
        ("Markdown", ".md", "text/markdown", lambda: report.markdown(only).encode(), True),
        ("PNG", ".png", "image/png", lambda: paper_figures.main_figure(report), made.has_charts),
        ("CSV tables", "_tables.zip", "application/zip", lambda: zipped(tables), bool(tables)),
    ]
    with widgets.row():
        for label, ending, mime, make, any_ in files:
            key, name = f"report{ending}", report.stem + ending
            widgets.download(label, make, name, mime, key=key, disabled=not any_)
        with st.popover("Paper", icon=":material/folder_zip:"):
            paper(made)
        with st.popover("Command line", type="tertiary", icon=":material/terminal:"):
            widgets.note("The same report in a terminal:")
            widgets.command(report.command(only))
            widgets.note("With --paper DIR instead of --out it makes the folder for a paper.")
        widgets.note(
            "HTML: one file with interactive charts and the flips, to mail; it opens offline. PNG: "
            "the paired differences by task; each chart's own button saves that chart."
        )


def zipped(tables: dict[str, Table]) -> bytes:
    """Every table as CSV, in one archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, table in tables.items():
            archive.writestr(f"{key}.csv", table.csv())
    return out.getvalue()


@st.fragment  # the page is not drawn again
def paper(made: Made) -> None:
    """The folder for a paper as one ZIP, made when it is asked for."""
    widgets.note(
        "A folder for a paper, of all sections: figures (PDF, SVG), tables (LaTeX, CSV), numbers as "
        "LaTeX macros, and claims with the status that their intervals give them."
    )
    name = made.report.stem.replace("report_", "paper_", 1)
    if st.button("Make the ZIP", key="report-paper", icon=":material/build:"):
        with guard():
            st.session_state["report-paper-zip"] = made.key, _paper_zip(made, name)
    key, archive = st.session_state.get("report-paper-zip", ("", b""))
    if key == made.key:
        st.download_button(
            f"Download ({len(archive) / 1e6:.1f} MB)",
            archive,
            file_name=f"{name}.zip",
            mime="application/zip",
            on_click="ignore",
            key="report-paper-file",
            type="primary",
            icon=":material/download:",
        )


def _paper_zip(made: Made, name: str) -> bytes:
    from bidir_core.report.paper import zip_paper  # what draws loads slowly

    bar = st.progress(0.0, "Starting")
    archive = zip_paper(
        made.report, name, lambda share, what: bar.progress(share, what.capitalize())
    )
    bar.empty()
    return archive
