"""Report: what the runs show. The answer first; the appendix and the files hold the rest."""

import streamlit as st

from bidir_ui import report_view, shell
from bidir_ui.kit import widgets
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
    cached = None
    try:
        cached = report_view.build(page, chosen, page.pair.metric)
    finally:  # runs can be chosen anew even where these make no report
        report_view.toolbar(page, chosen, cached)
    report_view.first_page(cached)
    report_view.chosen_layers(page, cached)
    report_view.remarks(page, cached.report)
    report_view.appendix(cached)
