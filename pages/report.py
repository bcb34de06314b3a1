"""Report: what the runs show, in sections, to read here and to take away as files."""

import streamlit as st

from bidir_ui import report_view, shell
from bidir_ui.kit import fmt, widgets
from bidir_ui.reading import pair

page = shell.start("report")

st.title("Report", anchor=False)
with shell.guard():
    if not page.runs:
        pair.explain_if_missing(page.runs, page.pair)
        st.stop()
    chosen = report_view.chosen_runs(page)
    if chosen is None:
        st.stop()
    if not any(report_view.usable(run) for run in page.runs):
        widgets.banner(
            "empty",
            "No finished evaluation yet",
            "A report needs at least one. These two commands make the first comparison:",
        )
        widgets.command(*pair.PAIR_COMMANDS)
        st.stop()
    made = None
    try:
        made = report_view.build(page, chosen, page.pair.metric)
    finally:  # runs can be chosen anew even where these make no report
        report_view.runs_box(page, chosen, made)
    made = report_view.sections_box(made)
    if made is None:
        st.stop()
    study = made.report.study
    n_runs = len(study.all_runs)
    widgets.note(
        f"{study.model}: {fmt.count(n_runs)} run{'s' if n_runs > 1 else ''}, "
        f"{page.pair.metric}, {len(study.some_run.tasks)} tasks."
    )
    if not made.shown:
        widgets.banner("empty", "No section is chosen", "Choose at least one above.")
        st.stop()
    report_view.downloads(made)
    report_view.remarks(page, made.report)
    report_view.preview(made)
