"""Masks: who may see whom under any regime, and where a model that ran under it really looked."""

import streamlit as st

from bidir_core.report import plots
from bidir_ui import shell
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.masks import masks_view, observed_data, observed_view

page = shell.start("masks")

st.title("Masks", anchor=False)
with shell.guard():
    widgets.note(
        "Requested is the mask a regime asks for: each row is a token, each filled cell a token it may "
        "attend to. Observed is where a model that ran under it really looked."
    )
    item_id = url.get("item")
    mode = masks_view.mode()
    observed = observed_view.chosen(page)
    if mode == "observed":
        observed_view.section(page, observed, item_id)
        st.stop()
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
        if tokens is None:
            widgets.banner(
                "error",
                "Item not found, or its texts are not here",
                "No run here holds this item with its texts. Type a prompt instead.",
            )
            st.stop()
    else:
        tokens = masks_view.own_prompt()
    if tokens is None or tokens.n_prefix == 0:
        widgets.banner("empty", "Nothing to draw", "Type at least one word as the prompt.")
        st.stop()

    names = observed.names if observed is not None else ("causal", "bidirectional")
    left, right = st.columns(2)
    with left:
        regime = masks_view.regime_box("Regime", "regime", names[-1])
    with right:
        against = masks_view.regime_box("Compared with", "against", names[0])
    if regime is None or against is None:
        st.stop()
    view = url.choice(
        st.segmented_control,
        "View",
        name="view",
        options=masks_view.VIEWS,
        default="regime",
        label_visibility="collapsed",
    )
    layer = None
    if regime.layers is not None or against.layers is not None:
        layer = url.number("Layer", name="layer", default=0, least=0, most=200, step=1, width=160)
    first, second = (masks_view.cells(each, tokens, layer) for each in (regime, against))
    shown = {"regime": first, "against": second}.get(view)
    if shown is None:
        shown = masks_view.difference(first, second)

    picture, side = st.columns([5, 2], gap="large")
    with picture:
        html.show(masks_view.legend(view))
        event = widgets.chart(
            plots.mask(shown, tokens.pieces, tokens.n_prefix, masks_view.NAMES),
            f"Who sees whom under {regime}; the counts beside it say how many cells look ahead.",
            key=f"mask-{view}-{regime}-{against}-{layer}-{len(tokens.pieces)}-{tokens.n_prefix}",
            on_select="rerun",
            selection_mode="points",
        )
    with side:
        if view != "difference":
            masks_view.facts(shown, against if view == "against" else regime, tokens)
        points = event["selection"]["points"] if event else []
        if points:
            masks_view.explain((points[0]["y"], points[0]["x"]), shown, tokens, view)
        else:
            widgets.note("Click a cell to read it. The orange lines mark the end of the prefix.")
        if tokens.note:
            widgets.note(tokens.note)
        widgets.note(
            "Dials: sink=K, rows=A-B, skip=J, self=J, hide=J, tail=K, layers=A-B or A-, lambda=X, for "
            "example bidirectional:sink=1,lambda=0.03; causal takes hide alone: causal:hide=0"
        )
