"""Masks: who may see whom under any regime, and where a model that ran under it really looked."""

import streamlit as st

from bidir_core.report import plots
from bidir_ui import shell
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.masks import masks_view, observed_data, observed_view

page = shell.start("masks")

with shell.guard():
    item_id = url.get("item")
    title, switch, source = st.columns([3, 4, 5], vertical_alignment="center")
    with title:
        st.title("Masks", anchor=False)
    with switch:
        mode = masks_view.mode()
    observed = observed_view.chosen(page)
    if mode == "observed":
        observed_view.section(page, observed, item_id)
        st.stop()
    with source:
        if observed is not None and not observed.is_summary:
            pieces, n_prefix = observed_data.tokens(observed)
            tokens: masks_view.Tokens | None = masks_view.Tokens(pieces, n_prefix).cut()
            widgets.note("The text of the observed run: ", html.el("b", observed.subject))
        elif item_id:
            tokens = masks_view.from_item(page, item_id)
            with widgets.row():
                html.show(html.div("b", "Item ", widgets.code_text(fmt.clip(item_id, 80))))
                if st.button("Use my own prompt", key="own"):
                    url.put(item="")
                    st.rerun()
        else:
            tokens = masks_view.own_prompt()
    if tokens is None:
        widgets.banner(
            "error",
            "Item not found, or its texts are not here",
            "No run here holds this item with its texts. Type a prompt instead.",
        )
        st.stop()
    if tokens.n_prefix == 0:
        widgets.banner("empty", "Nothing to draw", "Type at least one word as the prompt.")
        st.stop()

    names = observed.names if observed is not None else ("causal", "bidirectional")
    left, right = st.columns(2, gap="medium")
    with left:
        against = masks_view.regime_box("Left", "against", names[0])
    with right:
        regime = masks_view.regime_box("Right", "regime", names[-1])
    if regime is None or against is None:
        st.stop()
    with widgets.row():
        view = url.segments("View", name="view", options=masks_view.VIEWS, default="both")
        layer = None
        if regime.layers is not None or against.layers is not None:
            layer = url.number(
                "Layer", name="layer", default=0, least=0, most=200, step=1, width=120
            )
        html.show(masks_view.legend(view))
    place = st.container()  # above the pictures: a click on one is read without scrolling
    sides = [(str(each), masks_view.cells(each, tokens, layer)) for each in (against, regime)]
    if view == "difference":
        pictures = [("", masks_view.difference(sides[1][1], sides[0][1]))]
    else:
        pictures = sides
    points: list[dict[str, int]] = []
    columns = st.columns(2, gap="medium")
    for column, each, (name, shown) in zip(columns, (against, regime), pictures, strict=False):
        with column:
            if name:
                masks_view.facts(shown, each, tokens)
            event = widgets.chart(
                plots.mask(
                    shown, tokens.pieces, tokens.n_prefix, masks_view.NAMES, masks_view.SIDE
                ),
                f"Who sees whom under {name or f'{regime} and not under {against}'}; the line above "
                "says how many cells look ahead.",
                key=f"mask-{view}-{name}-{layer}-{len(tokens.pieces)}-{tokens.n_prefix}",
                on_select="rerun",
                selection_mode="points",
            )
            points += event["selection"]["points"] if event else []
    with place:
        if points:
            masks_view.explain((points[-1]["y"], points[-1]["x"]), pictures, tokens, view)
        else:
            widgets.note(
                "Each row is a token, its marked cells the tokens that it sees; click one to read it. "
                f"{tokens.n_prefix} prefix and {len(tokens.pieces) - tokens.n_prefix} continuation "
                "tokens."
            )
    widgets.note(
        "Dials: sink=K, rows=A-B, skip=J, self=J, hide=J, tail=K, layers=A-B or A-, lambda=X, for "
        "example bidirectional:sink=1,lambda=0.03. Causal has one dial: causal:hide=0. "
        + tokens.note
    )
