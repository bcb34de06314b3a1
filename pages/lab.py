"""Lab: many regimes on one model. Where the damage comes from, how sure that is, and its controls."""

import streamlit as st

from bidir_ui import shell
from bidir_ui.kit import url, widgets
from bidir_ui.lab import lab_controls, lab_data, lab_orders, lab_view
from bidir_ui.reading import scorecards

page = shell.start("lab")

with shell.guard():
    leading = "" if url.get("sweep") else scorecards.leading_sweep(page.runs)
    orders = lab_orders.order_sets(page.runs)
    info = lab_view.choose(lab_data.sweeps(page.runs), orders, leading)
    if info is None:
        st.stop()
    if isinstance(info, lab_orders.OrderSet):
        lab_orders.show(info, page.pair.metric)
        st.stop()
    lab = lab_data.load(info, page.runs, page.pair.metric)
    if not lab_view.state(lab):
        lab_view.watch(lab)
        st.stop()
    if arms := (lab.found.get("orders") or {}).get(page.pair.metric):
        lab_orders.panel(lab_orders.stored(arms), info.id)
    lab_view.verdict(lab)
    slug = lab_view.chosen_slug(lab)
    lab_controls.point_card(lab, slug)
    if lab_view.any_to_draw(lab):
        measure = url.segments(
            "Charts show", name="show", options=lab_data.MEASURES, default="delta"
        )
        lab_view.dose_response(lab, measure, slug)
        lab_view.layers(lab, measure, slug)
    lab_controls.panel(lab, page.runs)
    widgets.heading("Every point")
    with st.expander("The charts' numbers as a table", expanded=len(lab.points) <= 24):
        lab_controls.table(lab, slug)
    lab_view.watch(lab)
