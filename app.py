"""The app's front door, and its Overview page. Start it with ``streamlit run app.py``."""

import streamlit as st

from bidir_ui import shell
from bidir_ui.kit import html, url, widgets
from bidir_ui.kit.server import MIDDLEWARE
from bidir_ui.overview import cards, pair_view, panels
from bidir_ui.reading import analysis, story

app = st.App(__file__, middleware=MIDDLEWARE)


def overview() -> None:
    """The story of the runs that exist, then the chosen pair in detail. A pair that the URL names
    was picked by the reader, so its answer stands above the story."""
    page = shell.start("overview")
    st.title("What does bidirectional prefill do?", anchor=False)
    picked = bool(url.get("a") or url.get("b"))
    if picked:
        with shell.guard():
            pair_view.answer(page)
    with shell.guard():
        if picked:
            html.show(html.el("h2", "The story, in five steps", cls="b-h2 b-rule"))
        told = story.tell(page.runs)
        result = analysis.try_compare(told.a, told.b) if told.a and told.b else None
        if told.a is not None:
            widgets.note(
                f"{told.a.model}: five steps, in order. Each number says its items: “limit” is the "
                "first so many of each task, “all items” the whole validation sets."
            )
        number = panels.current()
        steps = cards.all_cards(told, result)
        cards.show(steps, number)
        html.show(html.el("h2", steps[number - 1].title, cls="b-h2"))
        with shell.guard():
            panels.draw(number, told, result)

        chosen = pair_view.compared(page) if picked else pair_view.answer(page, "b-rule")
        a, b, metric = page.pair.a, page.pair.b, page.pair.metric
        if chosen is None or a is None or b is None:
            return
        if picked:
            html.show(html.el("h2", "The chosen pair, task by task", cls="b-h2 b-rule"))
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
