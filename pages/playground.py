"""Playground: a prompt under two regimes, next tokens and texts side by side."""

import streamlit as st

from bidir_ui import playground_view, shell

page = shell.start("playground")

with shell.guard():
    request = playground_view.settings()  # it waits for no run folders
    worker = playground_view.model_bar(page.runs)
    if worker.state == "ready" and request is not None:
        st.button(
            "Generate",
            key="pg-generate",
            type="primary",
            icon=":material/play_arrow:",
            on_click=playground_view.ask,
            args=(worker, request),
        )
    playground_view.answer(worker)
