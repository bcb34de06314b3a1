"""The app's front door, and its Overview page. Start it with ``streamlit run app.py``."""

import threading

import streamlit as st

from bidir_ui import shell
from bidir_ui.kit import url, widgets
from bidir_ui.kit.server import MIDDLEWARE
from bidir_ui.overview import hero, scorecard_view
from bidir_ui.reading import pair, scorecards

app = st.App(__file__, middleware=MIDDLEWARE)


def overview() -> None:
    """One answer with its numbers, then every model's. A pair that the URL names is linked to."""
    page = shell.start("overview")
    st.title("What does bidirectional prefill do?", anchor=False)
    with shell.guard():
        if url.get("a") or url.get("b"):
            pair.line(page.pair)
            if pair.explain_if_missing(page.runs, page.pair):
                widgets.page_link("compare", "Compare this pair", url.params(), "balance")
        limited = url.get("items") == str(scorecard_view.LIMIT)
        rows = scorecards.rows(page.runs, scorecard_view.LIMIT if limited else None)
        if not rows:
            scorecard_view.unfinished(page.runs)
            if page.pair.complete or not page.runs:
                pair.explain_if_missing(page.runs, page.pair)
            return
        scorecard_view.first_screen(rows[0])
        with shell.guard():
            hero.draw(page.runs)
        widgets.heading("Every model")
        scorecard_view.switch()
        scorecard_view.table(rows, page.runs)
        scorecard_view.unfinished(page.runs)
        scorecard_view.details(rows)


if shell.in_session():
    overview()
else:  # the server has started, and its first reader's browser is still loading
    threading.Thread(target=scorecards.look_ahead, daemon=True).start()
