"""Run: one run folder whole. What it is, what it found, what it was made with, how it goes."""

import streamlit as st

from bidir_ui import run_view, runs_table, shell
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.reading import data, pair

page = shell.start("run")

with shell.guard():
    run_id = url.get("id")
    info = data.by_id(page.runs, run_id)
    widgets.page_link("runs", "Runs", url.params(), "arrow_back")
    title = info.label if info else "Run"
    html.show(html.el("h1", fmt.clip(title, 100), cls="b-title"))
    if not page.runs:
        pair.explain_if_missing(page.runs, page.pair)
        st.stop()
    if info is None:
        if run_id:
            wanted = html.join("No run folder here is called ", html.el("code", run_id[:120]), ".")
            widgets.banner("error", "Run not found", wanted, "It may be renamed or deleted.")
        else:
            widgets.banner("empty", "No run is chosen", "Open one from the list of runs.")
        st.stop()
    widgets.note(widgets.code_text(info.id), f" · {info.created} UTC · {runs_table.state_of(info)}")
    widgets.lead(run_view.sentence(info))
    if info.error:
        heading = runs_table.BAD.get(info.state, "It stopped")
        widgets.banner("error", heading, info.error, f"The log: {info.path}/log.txt")
    for caution in info.cautions:
        widgets.banner("info", *caution)
    if info.is_sweep and info.state != "corrupt":
        run_view.swept(info, page.runs, page.pair.metric)
    run_view.leads_on(info, page.runs)
    run_view.live(info, page.runs, page.pair.metric)
    if info.state != "corrupt":
        if info.state != "running":
            run_view.scores(info)
        run_view.made_with(info)
    widgets.heading("This run")
    with widgets.row():
        runs_table.one_run(info)
