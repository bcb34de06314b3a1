"""The Report page's parts: its runs, the first page, the appendix and the files."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import streamlit as st

from bidir_core.analyse.study import CAUSAL
from bidir_core.data import item_texts
from bidir_core.report import html_page, paper_figures, report, sections, share
from bidir_core.report.charts import Chart, charts
from bidir_core.report.markdown import Column, Table
from bidir_core.report.sections import ALL_SECTIONS, FLIPS, FRONT
from bidir_core.runs.layout import EVAL_DIRS, FINETUNE_DIRS
from bidir_core.runs.run import Run
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.reading import data, pair, scorecards
from bidir_ui.reading.data import RunInfo
from bidir_ui.shell import Page, guard

SHORT = {
    "scope": "Scope",
    "stages": "Stages",
    "macro": "Macro",
    "per_task": "Per task",
    "non_prefill": "Non-prefill",
    "two_by_two": "2x2",
    "differences": "Differences",
    "churn": "Churn",
    "leaky": "Leaky 3A",
    "training": "Training",
    "curve": "Recovery",
    "cost": "Cost",
    "artifacts": "Artifacts",
    FLIPS: "Flips",
}

ALL, MINE = "fullest", "mine"

STAGES = (*EVAL_DIRS, *FINETUNE_DIRS.values())


@dataclass(frozen=True)
class CachedReport:
    """A report and the key under which it is cached."""

    report: sections.Report
    key: str

    @property
    def drawn(self) -> dict[str, list[html_page.Block]]:
        """The blocks of its sections, cached for light and dark apart: drawing a chart colours it."""
        return _drawn(self.report, self.key, str(st.context.theme.type))


@st.cache_resource(max_entries=6, show_spinner=False)
def _report(
    paths: tuple[str, ...],
    around: tuple[str, ...],
    model: str,
    metric: str,
    stamp: str,
) -> sections.Report:
    named, both = [Run(path) for path in paths], [Run(path) for path in around]
    return report.build_report(
        named or None,
        model=model or None,
        pair=(both[0], both[1]) if both else None,
        metric=metric,
    )


@st.cache_resource(max_entries=12, show_spinner=False)
def _drawn(_report: sections.Report, key: str, theme: str) -> dict[str, list[html_page.Block]]:
    by_section = charts(_report)
    return {s.key: html_page.blocks(s, by_section.get(s.key, [])) for s in _report.sections}


def build(page: Page, chosen: Sequence[RunInfo], metric: str) -> CachedReport:
    """The report on these runs; without any, on all runs over the items of the pair that the
    address names; without either, on the fullest set of the leading pair's model.

    Remembered until a finished run comes, goes or changes. UserError if there is nothing to say.
    """
    known = [(run.id, run.modified) for run in page.runs if usable(run) or run.is_point]
    stamp = hashlib.sha256(repr(known).encode()).hexdigest()
    a, b = page.pair.a, page.pair.b
    both = [r for r in (a, b) if r is not None and (usable(r) or (r.is_point and r.is_done))]
    named = not chosen and len(both) == 2 and (url.get("a") or url.get("b"))
    around = tuple(run.path for run in both) if named else ()
    model = "" if chosen or around or a is None else a.model
    asked = (tuple(run.path for run in chosen), around, model, metric, stamp)
    with widgets.waiting("Computing the report", 40, 96, 230):
        return CachedReport(_report(*asked), repr(asked))


def usable(run: RunInfo) -> bool:
    """Whether a report can speak of it: finished or published, and a stage of the study."""
    return (run.is_done or run.is_reference) and run.stage in STAGES and not run.is_point


# --- what to report on ---------------------------------------------------------------------------


def chosen_runs(page: Page) -> list[RunInfo] | None:
    """The runs named in the URL; empty for the pair's set. None if one of them does not exist."""
    named = [(run_id, data.by_id(page.runs, run_id)) for run_id in url.get_list("runs")]
    unknown = [run_id for run_id, run in named if run is None]
    if unknown:
        pair.explain_if_missing(page.runs, pair.Pair(None, None, unknown=tuple(unknown)))
        st.button(
            "Report on the chosen pair instead",
            key="report-fullest",
            on_click=lambda: url.put(runs=""),
        )
        return None
    if not named and page.pair.unknown:
        pair.explain_if_missing(page.runs, page.pair)
        return None
    return [run for _, run in named if run is not None]


def runs_box(page: Page, chosen: Sequence[RunInfo], cached: CachedReport | None) -> None:
    """All runs over the chosen pair's items, or runs of one's own choice."""
    in_it = [run.id for run in cached.report.study.all_runs] if cached else []
    url.bound(
        st.segmented_control,
        "Runs",
        name="runs",
        options=[ALL, MINE],
        required=True,
        format_func={ALL: "The pair's items", MINE: "My choice"}.get,
        read=lambda text: MINE if text else ALL,
        write=lambda value: "~".join(in_it) if value == MINE else "",
        help="The pair's items: every finished run of the pair's model over the same items. Where "
        "none was chosen, it is the pair that the Overview begins with.",
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
        placeholder="choose runs; none: the pair's again",
    )


def _run_label(runs: tuple[RunInfo, ...], run_id: str) -> str:
    run = data.by_id(runs, run_id)
    text = run_id if run is None else f"{run.label} {run.name} {run.model.split('/')[-1]}"
    return item_texts.visible(fmt.clip(text, 80))


def remarks(page: Page, report: sections.Report) -> None:
    """What is not in the report although a reader may expect it."""
    unfinished = [
        run
        for run in page.runs
        if run.model == report.study.model and run.stage in STAGES and not usable(run)
    ]
    if unfinished:
        lines = [f"{run.id} ({run.state})" for run in unfinished[:5]]
        more = f" and {len(unfinished) - 5} more" if len(unfinished) > 5 else ""
        widgets.banner(
            "info",
            "Partial: unfinished or damaged runs of this model are not in the report",
            ", ".join(lines) + more + ".",
        )
    left_out = report.study.left_out
    if left_out:
        widgets.note(
            f"{len(left_out)} finished run{'s' if len(left_out) > 1 else ''} left out, with the "
            "reason: at the end of Artifacts."
        )


# --- preview ---------------------------------------------------------------------------------


def first_page(cached: CachedReport) -> None:
    """The answer, as the files have it."""
    study = cached.report.study
    n = (study.some_run.metrics or {}).get("n_items") or 0
    widgets.note(f"{cached.report.title}, n = {fmt.count(n)}.")
    _show(cached, FRONT, "b-report b-front")


def chosen_layers(page: Page, cached: CachedReport) -> None:
    """What the Overview tells beside it: how much the first layers give back, which a sweep chose on
    one half of the items and judged on the other. Only where its scorecard was read anyway."""
    if url.get("a") or url.get("b") or url.get_list("runs"):
        return
    rows = (row for row in scorecards.rows(page.runs) if row.model == cached.report.study.model)
    cell = next((row.without_training for row in rows), None)
    if cell is None or len(cell.runs) != 1 or (estimate := cell.judgement.estimate) is None:
        return
    how, n = cell.what.removeprefix("back "), fmt.count(estimate.n)
    text = f"Also without training: {how}, {fmt.points(cell.value)} points "
    text += f"{fmt.interval_of(estimate)} come back, n = {n}, on the half of the items that did not choose how many: "
    widgets.note(fmt.tie(text), widgets.link("the sweep", "lab", {"sweep": cell.runs[0]}), ".")


def appendix(cached: CachedReport) -> None:
    """The sections that the reader opens; the files have all of them."""
    html.show(html.el("h2", "Appendix", cls="b-h2 b-rule"))
    wanted = url.get_list("sections")
    available = [*(s.key for s in cached.report.sections if not s.is_front), FLIPS]
    for key in wanted:
        if key not in ALL_SECTIONS:
            widgets.banner(
                "error",
                "Section not found",
                html.join("No section is called ", html.el("code", fmt.clip(key, 60)), "."),
                f"There are: {', '.join(available)}.",
            )
    shown = url.bound(
        st.pills,
        "Open a section; the files hold all of them",
        name="sections",
        options=available,
        selection_mode="multi",
        format_func=lambda key: SHORT.get(key, key),
        read=lambda text: [key for key in available if key in wanted],
        write=lambda value: "~".join(key for key in available if key in value),
    )
    for section in cached.report.sections:
        if section.key in shown:
            html.show(html.el("h2", section.heading, cls="b-h2 b-rule"))
            _show(cached, section.key, "b-report")
    if FLIPS in shown:
        html.show(html.el("h2", ALL_SECTIONS[FLIPS], cls="b-h2 b-rule"))
        widgets.note(
            "The HTML file lists the items whose right answer's margin moved most, with their "
            "choices and both log-likelihoods. Here they have a page of their own:"
        )
        query = url.params(flip="broken~fixed", **_bent_pair(cached.report))
        widgets.page_link("flips", "Flips", query, "swap_vert")


def _bent_pair(report: sections.Report) -> dict[str, str]:
    """Stage 1 and stage 2 of this report, which need not be the chosen pair, if they pair."""
    study = report.study
    sides = [list(study.runs(study.base, regime).values()) for regime in (CAUSAL, study.regime)]
    if not all(runs and runs[0].has_items for runs in sides):
        return {}
    return {"a": sides[0][0].id, "b": sides[1][0].id}


def _show(cached: CachedReport, key: str, cls: str) -> None:
    """A section's blocks; what stands between two Plotly charts becomes one element."""
    waiting: list[html.Html] = []
    for block in [*cached.drawn.get(key, ()), None]:
        if isinstance(block, Table):
            waiting.append(report_table(block, cached.report.stem))
        elif block is not None and not isinstance(block, Chart):
            waiting.append(html.div("b", block))
        elif waiting:
            html.show(html.div(cls, *waiting))
            waiting = []
        if isinstance(block, Chart):
            html.show(html.div("b", html.el("b", block.title)))
            name = f"{cached.report.stem}_{block.key}"
            widgets.chart(block.figure, block.alt, save_as=name, key=f"report-{block.key}")


def report_table(table: Table, stem: str) -> html.Html:
    """A table of the report, whose files begin with ``stem``; a long one is folded."""
    columns = table.columns
    text_columns = [i for i, column in enumerate(columns) if column.is_text]
    rows = [list(map(_cell, row, columns)) for row in table.texts()]
    head = [column.title for column in columns]
    shown = widgets.table(head, rows, name=f"{stem}_{table.key}", left=text_columns)
    if len(rows) > html_page.FOLDED:
        label = f"Table, {len(rows)} rows"
        shown = html.el("details", html.el("summary", label), shown, cls="b b-fold")
    return shown


def _cell(text: str, column: Column) -> object:
    if column.kind == "code":
        long = len(text) > html_page.LONG
        return html.el("span", text, cls="b-mono b-long" if long else "b-mono")
    return text if column.is_text else html_page.tied(text)


# --- files: each is made when it is asked for, and not before ------------------------------------


def toolbar(page: Page, chosen: Sequence[RunInfo], cached: CachedReport | None) -> None:
    """One quiet row above the answer."""
    with widgets.row():
        if cached is not None:
            with st.popover("Download", icon=":material/download:"):
                downloads(cached)
        with st.popover("Share", icon=":material/share:"):
            site(page)
        with st.popover("Runs", icon=":material/list:", type="tertiary"):
            runs_box(page, chosen, cached)


def downloads(cached: CachedReport) -> None:
    """Files that are made when they are asked for; their names carry the model and the date."""
    report = cached.report
    tables = report.tables
    files: list[tuple[str, str, str, Callable[[], bytes], bool]] = [
        ("HTML", ".html", "text/html", lambda: html_page.page(report).encode(), True),
        ("Markdown", ".md", "text/markdown", lambda: report.markdown().encode(), True),
        ("PNG", ".png", "image/png", lambda: paper_figures.main_figure(report), True),
        ("CSV tables", "_tables.zip", "application/zip", lambda: zipped(tables), bool(tables)),
    ]
    with widgets.row():
        for label, ending, mime, make, enabled in files:
            key, name = f"report{ending}", report.stem + ending
            widgets.download(label, make, name, mime, key=key, disabled=not enabled)
    widgets.note(
        "The answer and the whole appendix. HTML: one file with charts and the flips, to mail; it "
        "opens offline. PNG: the paired differences by task."
    )
    paper(cached)
    widgets.note("The same report in a terminal; with --paper DIR instead of --out, the paper's:")
    widgets.command(report.command())


def zipped(tables: dict[str, Table]) -> bytes:
    """Every table as CSV, in one archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, table in tables.items():
            archive.writestr(f"{key}.csv", table.csv())
    return out.getvalue()


def paper(cached: CachedReport) -> None:
    """The folder for a paper as one ZIP."""
    name = cached.report.stem.replace("report_", "paper_", 1)

    def make(tell: share.Tell) -> bytes:
        from bidir_core.report.paper import zip_paper  # what draws loads slowly

        return zip_paper(cached.report, name, tell)

    widgets.note(
        "A folder for a paper: figures (PDF, SVG), tables (LaTeX, CSV), numbers as LaTeX macros, "
        "and claims with the status that their intervals give them."
    )
    _archive("paper", name, cached.key, make)


def site(page: Page) -> None:
    """The small website of all runs as one ZIP."""
    widgets.note(
        "A small website of all runs: the answer, the scorecard of every model, the answers that "
        "flip and a page for each with its reason. Unpack it and open index.html: it needs no "
        "server and no network, so it can be mailed or put on any web space."
    )
    stamp = hashlib.sha256(repr([(r.id, r.modified) for r in page.runs]).encode()).hexdigest()
    _archive("site", "bidir-site", stamp, lambda tell: share.zip_site("bidir-site", tell))
    widgets.note("The same in a terminal:")
    widgets.command(share.COMMAND)


@st.fragment  # the page is not drawn again
def _archive(kind: str, name: str, stamp: str, make: Callable[[share.Tell], bytes]) -> None:
    """A ZIP file that is made when it is asked for, and again once ``stamp`` (its runs) changes."""
    state = f"report-{kind}-zip"
    if st.button(f"Make the ZIP of the {kind}", key=f"report-{kind}", icon=":material/build:"):
        with guard():
            bar = st.progress(0.0, "Starting")
            content = make(lambda part, step: bar.progress(part, step[:1].upper() + step[1:]))
            st.session_state[state] = stamp, content
            bar.empty()
    known, archive = st.session_state.get(state, ("", b""))
    if known == stamp:
        st.download_button(
            f"Download ({len(archive) / 1e6:.1f} MB)",
            archive,
            file_name=f"{name}.zip",
            mime="application/zip",
            on_click="ignore",
            key=f"report-{kind}-file",
            type="primary",
            icon=":material/download:",
        )
