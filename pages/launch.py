"""Launch: a stage as a form and a command line, its cost before it starts, and the jobs."""

import streamlit as st

from bidir_core import jobs
from bidir_ui import shell
from bidir_ui.kit import widgets
from bidir_ui.launch import jobs_view, review, view

page = shell.start("launch")

st.title("Launch", anchor=False)
with shell.guard():
    line, place = "", None
    form = view.form(page.runs)
    known = jobs.list_jobs()
    made = review.estimated(form, page.runs, known)
    if form.config is None or made is None:
        widgets.banner("info", "Not ready to start", form.error[:1].upper() + form.error[1:])
    else:
        command, cost = st.columns([3, 2], gap="large")
        with command:
            widgets.heading("The command line")
            line = jobs.command_text(form.words)
            place = view.command_line(line)
            widgets.note(
                "The same in a terminal. Here it runs detached: closing this page or "
                "stopping the app does not stop it."
            )
        with cost:
            widgets.heading("What it will take")
            review.review(form, made, page.runs)
        device = jobs.queue_device(form.words)
        ahead = sum(job.is_active and job.device == device for job in known)
        with st.container(horizontal=True, vertical_alignment="center"):
            for label, words in (("Start …", form.words), ("Dry run on 5 items …", form.dry_words)):
                if not words:  # the probe has no items
                    continue
                chosen = st.button(
                    label,
                    key=f"launch-{'start' if words == form.words else 'dry'}",
                    type="primary" if words == form.words else "secondary",
                )
                if chosen:
                    key = jobs.idempotency_key(words, known)
                    review.confirm(form, words, key, made, ahead)
    if st.session_state.get("launch-error"):
        widgets.banner("error", "Not started", st.session_state.pop("launch-error"))
    if st.session_state.pop("launch-started", None):
        widgets.banner(
            "info", "Started", "It is among the jobs below, and goes on without this page."
        )
with shell.guard():
    jobs_view.section(page.runs)
    if place is not None:
        view.make_copyable(place, line)
