"""One head's observed weights: the picture, which head, and what a cell says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st

from bidir_core.report import plots, plots_attend
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.masks import masks_view, observed_data
from bidir_ui.masks.observed_data import Observed

TOP = 6


@dataclass(frozen=True)
class Head:
    """One head of one layer. ``seen`` and ``allowed``: weights and mask ``[query, key]`` under each
    regime; ``query`` and ``key``: the chosen cell."""

    run: Observed
    layer: int
    number: int
    pieces: tuple[str, ...]
    n_prefix: int
    seen: list[np.ndarray]
    allowed: list[np.ndarray]
    query: int
    key: int


def selected(run: Observed) -> tuple[int, int]:
    """The layer and head in the URL; a layer in the middle where it names none that exists."""
    return _number("layer", run.n_layers, run.n_layers // 2), _number("head", run.n_heads)


def _number(name: str, below: int, default: int = 0) -> int:
    return url.read_number(url.get(name), default, 0, below - 1)


def section(run: Observed, pieces: tuple[str, ...], n_prefix: int) -> None:
    """Choosers, one head's pictures, and what the chosen cell says."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        view = _view(run)
        _chooser("Layer", "layer", run.n_layers, run.n_layers // 2)
        _chooser("Head", "head", run.n_heads)
    layer, number = selected(run)
    total, regimes = len(pieces), range(len(run.names))
    head = Head(
        run,
        layer,
        number,
        pieces,
        n_prefix,
        seen=[observed_data.head(run, regime, layer, number, total) for regime in regimes],
        allowed=[
            observed_data.requested(run, regime, layer, n_prefix, total) for regime in regimes
        ],
        query=_number("q", total, n_prefix - 1),
        key=_number("k", total),
    )
    legend, views = LEGENDS[view](run), [f"{view}-{i}" for i in regimes]
    html.show(legend)
    with st.container(key="attend-picture"):
        shown = views if view != "difference" else [view]
        for column, name in zip(st.columns(max(2, len(shown)), gap="medium"), shown, strict=False):
            with column:
                _picture(head, name)
    widgets.note("Orange lines: the end of the prefix. Click a cell to read it.")
    cell, top = st.columns(2, gap="large")
    with cell:
        with st.container(horizontal=True):
            _chooser("Query (row)", "q", total, n_prefix - 1)
            _chooser("Key (column)", "k", total)
        _cell(head)
    with top:
        _top(head)
        window = run.window(layer)
        if window is not None:
            widgets.note(
                f"This layer has a sliding window: it reaches keys nearer than {window} tokens."
            )


def _chooser(label: str, name: str, below: int, default: int = 0) -> None:
    url.number(label, name=name, default=default, least=0, most=below - 1, step=1, width=120)


def _view(run: Observed) -> str:
    """Which pictures: the observed weights, their difference, or what was requested."""
    views = {"seen": "Observed", "difference": "Difference", "asked": "Requested"}
    if len(run.names) < 2:
        del views["difference"]
    return url.choice(
        st.segmented_control, "Picture", name="see", options=views, default="seen", required=True
    )


HIDDEN = (plots_attend.HIDDEN, "hidden: the regime forbids it")
SEEN = (("#fde725", "much attention"), ("#21918c", "about 0.3 %"), ("#440154", "next to none"))
LEGENDS: dict[str, Callable[[Observed], html.Html]] = {
    "seen": lambda run: widgets.legend(*SEEN, HIDDEN),
    "difference": lambda run: widgets.legend(
        (plots.BLUE, f"more under {run.names[1]}"),
        (plots.RED, f"more under {run.names[0]}"),
        (plots_attend.HIDDEN, "hidden in both"),
    ),
    "asked": lambda run: masks_view.legend("both"),
}


def clickable(key: str, row: str, column: str) -> dict[str, Any]:
    """Options of a chart whose clicked cell goes into the URL, under these two names."""

    def clicked() -> None:
        points = st.session_state[key]["selection"]["points"]
        if points:
            url.put(**{row: str(int(points[0]["y"])), column: str(int(points[0]["x"]))})

    return {"key": key, "on_select": clicked, "selection_mode": "points"}


def _picture(head: Head, view: str) -> None:
    """``view``: ``seen-0``, ``asked-1`` (of which regime) or ``difference``."""
    run, seen, allowed = head.run, head.seen, head.allowed
    kind, _, number = view.partition("-")
    key = f"attend-head-{run.info.id}-{view}-{head.layer}-{head.number}"
    options = clickable(key, "q", "k")
    text = f"Attention of layer {head.layer}, head {head.number}"
    if kind == "difference":
        first, second = run.names
        weights, mask, minus = seen[1], allowed[0] | allowed[1], seen[0]
        title = f"{second} minus {first}"
    else:
        title = run.names[int(number)]
        weights, mask, minus = seen[int(number)], allowed[int(number)], None
    widgets.note(html.el("b", title))
    side = masks_view.SIDE
    if kind == "asked":
        cells = mask.astype(np.int8) + (mask & np.triu(np.ones_like(mask), 1))
        widgets.chart(
            plots.mask(cells, head.pieces, head.n_prefix, masks_view.NAMES, side),
            f"Who may see whom in layer {head.layer} under {title}.",
            **options,
        )
        return
    cell = (head.query, head.key)
    figure = plots_attend.weights(
        weights, mask, head.pieces, head.n_prefix, minus=minus, cell=cell, side=side
    )
    alt = f"{text}, {title}, log colours. The table below it has the numbers."
    widgets.chart(figure, alt, **options)


def _cell(head: Head) -> None:
    """The chosen cell under each regime."""
    query, key, n_prefix = head.query, head.key, head.n_prefix
    masks_view.two_tokens(head.pieces, n_prefix, query, key, "looks at")
    rows = []
    for regime, seen, allowed in zip(head.run.regimes, head.seen, head.allowed, strict=True):
        if not allowed[query, key]:
            rows.append((str(regime), "may not", fmt.NONE))
            continue
        ahead = key > query and query < n_prefix
        permission = "may, looking ahead" if ahead else "may"
        strength = regime.at_layer(head.layer).lam
        if ahead and strength < 1:
            permission += f", λ = {strength:g}"
        rows.append((str(regime), permission, weight(float(seen[query, key]))))
    columns, name = ("Regime", "Requested", "Observed"), f"attention-pair_{head.run.info.id}"
    html.show(widgets.table(columns, rows, name=name, left=(0, 1)))


def _top(head: Head) -> None:
    """The keys this query looks at most, under any regime."""
    query = head.query
    most = np.max([weights[query] for weights in head.seen], axis=0)
    reach = np.any([may[query] for may in head.allowed], axis=0)
    order = [key for key in np.argsort(-most, kind="stable").tolist() if reach[key]][:TOP]
    rows = []
    for key in order:
        shares = (
            weight(float(seen[query, key])) if may[query, key] else fmt.NONE
            for seen, may in zip(head.seen, head.allowed, strict=True)
        )
        token = html.join(f"{key} ", widgets.code_text(fmt.clip(head.pieces[key], 24)))
        rows.append((token, *shares))
    widgets.note(f"What token {query} looks at most, in this head:")
    name = f"attention-of-token-{query}_{head.run.info.id}"
    html.show(widgets.table(("Token", *head.run.names), rows, name=name, left=(0,)))


def weight(value: float) -> str:
    """A share of attention with as many digits as it needs."""
    if value == 0:
        return "0 %"
    if value < 1e-5:
        return "< 0.001 %"
    digits = 1 if value >= 0.1 else 2 if value >= 0.01 else 3
    return fmt.percent(value, digits)
