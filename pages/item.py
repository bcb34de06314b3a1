"""Item: one question under both runs, and what moved its answer."""

import streamlit as st

from bidir_ui import shell
from bidir_ui.item import item_view, rescore_view, why_view
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.reading import analysis, filters, pair

page = shell.start("item")

with shell.guard():
    a, b, metric = shell.chosen_pair(page)
    item_id, chosen = url.get("item"), filters.from_url()
    frame = filters.apply(analysis.flips(a, b, metric), chosen)
    if not item_id and len(frame):  # the flip that broke most, where the filter keeps one
        first = frame[frame["flip"] == "broken"] if not chosen.flip else frame
        item_id = str((first if len(first) else frame)["item_id"].iloc[0])
        url.put(item=item_id)
    item_view.bar(page, item_id, filters.neighbours(frame, item_id), chosen)
    left_record, right_record = (analysis.record_with_texts(run, item_id) for run in (a, b))
    record = item_view.fuller(left_record, right_record)
    if record is None:
        widgets.banner(
            "error",
            "Item not found",
            html.join(
                "Neither run holds an item called ", html.el("code", fmt.clip(item_id, 100)), "."
            ),
            "Item ids are a task and the row in its split, such as piqa/12.",
        )
        st.stop()
    pair.line(page.pair)
    pair.say_passed_over(page.passed_over)
    failed = [
        (run, r["error"]) for run, r in ((a, left_record), (b, right_record)) if r and r["error"]
    ]
    for run, error in failed:
        widgets.banner("error", f"This item failed in {run.label}", error)
    if left_record is None or right_record is None:
        widgets.banner(
            "info", "Only one of the two runs has this item", "So there is nothing to pair."
        )
    elif not failed:
        html.show(html.div("b b-lead", item_view.sentence(left_record, right_record, metric)))

    pred = "pred_norm" if metric == "acc_norm" and record["pred_norm"] is not None else "pred"
    with st.container(key="item-body"):
        main, side = st.columns([11, 4], gap="large")
    # What one reads first is sent first: the browser draws in the order of arrival.
    with main:
        if record["contexts"] is None:
            widgets.banner("info", "The texts are not here", analysis.MISSING)
        else:
            borders = record["prefix_token_offsets"] is not None and url.bound(
                st.toggle,
                "Token borders",
                name="borders",
                read=lambda text: text != "off",
                write=lambda value: "" if value else "off",
            )
            context = analysis.choice_context(record, record["gold"])
            html.show(item_view.prompt(record, context, record["gold"], borders=borders))
        widgets.heading("Choices")
        names = [f"{run.stage_label} {run.regime}" for run in (a, b)]
        html.show(item_view.choices(record, left_record, right_record, pred, *names))

    with side:
        html.show(item_view.facts(record, left_record, right_record))
        pictures = item_view.masks_of_both(record, (a.regime, b.regime), record["gold"])
        if pictures is not None:
            html.show(pictures)
            query = url.params(item=item_id, against=a.regime, regime=b.regime)
            widgets.page_link("masks", "Open both masks", query, "grid_on")
        item_view.observed_links(page, item_id)
    with main:
        strips = item_view.strips(record, left_record, right_record)
        if strips:
            scale = max(abs(y - x) for _, rows in strips for _, x, y in rows) or 1.0
            widgets.heading("Which tokens moved")
            html.show(item_view.heat_scale(scale))
            for name, rows in strips:
                total = sum(y - x for _, x, y in rows)
                widgets.note(f"{name}: {fmt.signed(total)} nats over {len(rows)} tokens")
                html.show(item_view.heat_strip(rows, scale))
        elif left_record and right_record and not failed:
            widgets.note("No token-level numbers: a run was imported, or made with --compact.")

        if not failed:
            rescore_view.section(b, record, metric)
            why_view.section(page, item_id, record, metric)
        widgets.heading("Every run's answer to this item")
        html.show(item_view.other_runs(item_id, analysis.every_answer(page, item_id, record), pred))
        raw = st.expander("Raw record", key="raw", on_change="rerun")
        if raw.open:  # long, and rarely wanted: sent when asked for
            with raw:
                item_view.raw_record(item_id, {a.id: left_record, b.id: right_record})
