"""Flips: the items whose answer changed between two runs, filtered; each opens on the Item page."""

import streamlit as st

from bidir_core.common.errors import UserError
from bidir_ui import shell
from bidir_ui.compare import flips_view
from bidir_ui.kit import fmt, url, widgets
from bidir_ui.reading import analysis, filters, pair

page = shell.start("flips")

with shell.guard():
    pair.line(page.pair)
    a, b, metric = shell.chosen_pair(page)
    try:
        frame = analysis.flips(a, b, metric)
    except UserError as error:
        analysis.offer_intersection(error)
        st.stop()
    if frame.empty:
        widgets.banner(
            "empty",
            "These runs share no scored item",
            "Choose a baseline and a candidate that ran on the same data.",
        )
        st.stop()
    analysis.remarks(a, b)

    chosen = filters.from_url()
    flips_view.filter_row(frame, chosen)
    shown = filters.apply(frame, chosen)
    flips_view.counts(frame, shown)
    if shown.empty:
        widgets.banner(
            "empty",
            "No item matches this filter",
            f"{fmt.count(len(frame))} paired items are here; widen the filter to see them.",
        )
        if st.button("Clear the filter", key="clear"):
            url.put(**dict.fromkeys(filters.NAMES, ""))
            st.rerun()
        st.stop()

    opened = flips_view.table(shown, key=f"flips-{a.id}-{b.id}-{metric}-{chosen.key}")
    if opened:
        st.switch_page(shell.path("item"), query_params=url.params(item=opened, **chosen.params))
    with widgets.row():
        widgets.note("Click a row to open it. Sorted by how far the right answer's margin moved.")
        flips_view.download(shown, a.id, b.id)
