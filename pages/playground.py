"""Playground: a prompt under two regimes, next tokens and texts side by side."""

import streamlit as st

from bidir_ui import playground_view, shell
from bidir_ui.kit import widgets

page = shell.start("playground")

st.title("Playground", anchor=False)
with shell.guard():
    widgets.note(
        "The prompt is read under each regime, then continued token by token; what is generated is "
        "causal in every regime. One prompt is an anecdote: Compare and Lab count."
    )
    worker = playground_view.model_bar(page.runs)
    asked = playground_view.settings()
    if worker.state == "ready" and asked is not None:
        st.button(
            "Generate",
            key="pg-generate",
            type="primary",
            icon=":material/play_arrow:",
            on_click=playground_view.ask,
            args=(worker, asked),
        )
    playground_view.answer(worker)
