"""The app's front door, and its Overview page. Start it with ``streamlit run app.py``."""

import streamlit as st

from bidir_core.errors import UserError
from bidir_ui import analysis, cards, html, pair, pair_view, panels, shell, story, widgets
from bidir_ui.server import MIDDLEWARE

app = st.App(__file__, middleware=MIDDLEWARE)


def overview() -> None:
    """The story of the runs that exist, then the chosen pair in detail."""
    page = shell.start("overview")
    st.title("What does bidirectional prefill do?", anchor=False)
    with shell.guard():
        told = story.tell(page.runs)
        result = analysis.try_compare(told.a, told.b) if told.a and told.b else None
        if told.a is not None:
            widgets.note(f"{told.a.model}, {told.a.extent} per task: five steps, in order.")
        number = panels.current()
        steps = cards.all_cards(told, result)
        cards.show(steps, number)
        html.show(html.el("h2", steps[number - 1].title, cls="b-h2"))
        with shell.guard():
            panels.draw(number, told, result)

        html.show(html.el("h2", "The chosen pair", cls="b-h2 b-rule"))
        pair.line(page.pair)
        a, b, metric = shell.chosen_pair(page)
        try:
            chosen = analysis.compare(a, b, metric, intersect=analysis.intersecting())
        except UserError as error:
            analysis.offer_intersection(error)
            return
        analysis.remarks(a, b)
        pair_view.verdict(chosen)
        task = pair_view.forest(chosen, key=f"forest-{a.id}-{b.id}-{metric}")
        if task:
            pair_view.open_flips(task, a, b)
        widgets.note(
            "Click a task, in the chart or the table, to see which items flipped. Coloured: "
            "different, also after Holm's correction for several tasks. Grey: not separable."
        )
        pair_view.task_table(chosen, a, b)
        widgets.heading("How much of stage 1 is kept")
        pair_view.ladder(page.runs, a, told, metric)


if shell.in_session():
    overview()
