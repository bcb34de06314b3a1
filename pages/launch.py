"""Launch: a stage as a form and a command line, its cost before it starts, and the jobs."""

import streamlit as st

from bidir_core import jobs
from bidir_core.jobs.estimate import time_text
from bidir_ui import shell
from bidir_ui.kit import widgets
from bidir_ui.launch import ask, jobs_view, review, view

page = shell.start("launch")

place = None
with shell.guard():
    form = view.form(page)
    known = jobs.list_jobs()
    estimate = review.estimated(form, page.runs, known)
    if form.config is None or estimate is None:
        widgets.banner("info", "Not ready to start", form.error[:1].upper() + form.error[1:])
    else:
        command, cost = st.columns([3, 2], gap="large")
        with command:
            widgets.heading("The command line")
            place = st.container()  # filled last: what shows code takes the browser long to load
            widgets.note(
                "Copy it to a terminal, or start it here: it goes on when you close this page or stop "
                "the app."
            )
        with cost:
            widgets.heading("What it will take")
            review.review(form, estimate, page.runs)
            review.offer_timing(form, estimate, page.runs, known)
        needs = review.needed_assets(form.config)
        notes = (f"Time: {time_text(estimate)}, on {estimate.device}.",)
        with widgets.row():
            if st.button("Start …", key="launch-start", type="primary"):
                ask.confirm(
                    "launch", form.words, form.title, known, needs=needs, notes=notes, cost=estimate
                )
            if form.dry_words and st.button("Dry run on 5 items …", key="launch-dry"):
                title = f"{form.title} · dry run"
                ask.confirm("launch", form.dry_words, title, known, needs=needs)
    ask.say_what_failed("launch")
    if st.session_state.pop("launch-started", None):
        widgets.banner(
            "info", "Started", "It is among the jobs below, and goes on without this page."
        )
with shell.guard():
    jobs_view.section(page.runs)
    if place is not None:
        with place:
            widgets.command(jobs.command_text(form.words))
