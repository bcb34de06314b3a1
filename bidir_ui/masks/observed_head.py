"""One head's observed weights: the picture, which head, and what a cell says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import streamlit as st

from bidir_core.report import plots, plots_attend
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.masks import masks_view, observed_data
from bidir_ui.masks.observed_data import Observed

TOP = 6


def selected(run: Observed) -> tuple[int, int]:
    """The layer and head in the URL; a layer in the middle where it names none that exists."""
    return _number("layer", run.n_layers, run.n_layers // 2), _number("head", run.n_heads)


def _number(name: str, below: int, default: int = 0) -> int:
    text = url.get(name)
    return int(text) if text.isdecimal() and len(text) < 7 and int(text) < below else default


def section(run: Observed, pieces: tuple[str, ...], n_prefix: int) -> None:
    """Choosers, the picture of one head, and the inspector beside it."""
    widgets.heading("One head, requested and observed")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        _chooser("Layer", "layer", run.n_layers, run.n_layers // 2)
        _chooser("Head", "head", run.n_heads)
        view = _view(run)
    layer, head = selected(run)
    total = len(pieces)
    seen = [observed_data.head(run, r, layer, head, total) for r in range(len(run.names))]
    allowed = [
        observed_data.requested(run, r, layer, n_prefix, total) for r in range(len(run.names))
    ]
    query, key = _number("q", total, n_prefix - 1), _number("k", total)
    picture, side = st.columns([5, 3], gap="large")
    with picture, st.container(key="attend-picture"):
        _picture(run, view, seen, allowed, pieces, n_prefix, (query, key))
    with side:
        with st.container(horizontal=True):
            _chooser("Query (row)", "q", total, n_prefix - 1)
            _chooser("Key (column)", "k", total)
        _cell(run, seen, allowed, pieces, n_prefix, (query, key), layer)
        _top(run, seen, allowed, pieces, query)
        window = run.window(layer)
        if window is not None:
            widgets.note(
                f"This layer has a sliding window: it reaches keys nearer than {window} tokens."
            )


def _chooser(label: str, name: str, below: int, default: int = 0) -> None:
    url.bound(
        st.number_input,
        label,
        name=name,
        min_value=0,
        max_value=below - 1,
        step=1,
        width=120,
        read=lambda text: _number(name, below, default),
        write=lambda value: "" if value in (None, default) else str(value),
    )


def _view(run: Observed) -> str:
    """Which picture: a regime's weights, their difference, or a regime's mask."""
    views = {f"seen-{i}": f"Observed: {name}" for i, name in enumerate(run.names)}
    if len(run.names) > 1:
        views["difference"] = "Difference"
    views |= {f"asked-{i}": f"Requested: {name}" for i, name in enumerate(run.names)}
    return url.choice(
        st.segmented_control,
        "Picture",
        name="see",
        options=views,
        default=f"seen-{len(run.names) - 1}",
        required=True,
    )


def _picture(
    run: Observed,
    view: str,
    seen: Sequence[np.ndarray],
    allowed: Sequence[np.ndarray],
    pieces: Sequence[str],
    n_prefix: int,
    cell: tuple[int, int],
) -> None:
    layer, head = selected(run)
    what, _, number = view.partition("-")
    key = f"attend-head-{run.info.id}-{view}-{layer}-{head}"

    def clicked() -> None:
        points = st.session_state[key]["selection"]["points"]
        if points:
            url.put(q=str(int(points[0]["y"])), k=str(int(points[0]["x"])))

    options: dict[str, Any] = {"key": key, "on_select": clicked, "selection_mode": "points"}
    if what == "asked":
        mask = allowed[int(number)]
        shown = mask.astype(np.int8) + (mask & np.triu(np.ones_like(mask), 1))
        html.show(masks_view.legend("regime"))
        widgets.chart(
            plots.mask(shown, pieces, n_prefix, masks_view.NAMES),
            f"Who may see whom in layer {layer} under {run.names[int(number)]}.",
            **options,
        )
        return
    if what == "difference":
        first, second = run.names
        html.show(
            widgets.legend(
                (plots.BLUE, f"more under {second}"),
                (plots.RED, f"more under {first}"),
                (plots_attend.HIDDEN, "hidden in both"),
            )
        )
        figure = plots_attend.weights(
            seen[1], allowed[0] | allowed[1], pieces, n_prefix, minus=seen[0], cell=cell
        )
        text = f"Attention of layer {layer}, head {head}: {second} minus {first}, log colours."
    else:
        name = run.names[int(number)]
        html.show(
            widgets.legend(
                ("#fde725", "much attention"),
                ("#21918c", "about 0.3 %"),
                ("#440154", "next to none"),
                (plots_attend.HIDDEN, "hidden: the regime forbids it"),
            )
        )
        figure = plots_attend.weights(
            seen[int(number)], allowed[int(number)], pieces, n_prefix, cell=cell
        )
        text = f"Attention of layer {layer}, head {head}, under {name}, log colours."
    widgets.chart(figure, text + " The inspector beside it has the numbers.", **options)
    widgets.note("Orange lines: the end of the prefix. Click a cell to read it.")


def _cell(
    run: Observed,
    seen: Sequence[np.ndarray],
    allowed: Sequence[np.ndarray],
    pieces: Sequence[str],
    n_prefix: int,
    cell: tuple[int, int],
    layer: int,
) -> None:
    """The chosen cell under each regime."""
    query, key = cell
    part = ("continuation", "prefix")
    html.show(
        html.div(
            "b",
            html.el("b", f"Token {query}, "),
            widgets.code_text(fmt.clip(pieces[query], 60)),
            f" ({part[query < n_prefix]}) looks at ",
            html.el("b", f"token {key}, "),
            widgets.code_text(fmt.clip(pieces[key], 60)),
            f" ({part[key < n_prefix]}).",
        )
    )
    rows = []
    for number, name in enumerate(run.names):
        may = bool(allowed[number][query, key])
        said = "may not"
        if may:
            ahead = key > query and query < n_prefix
            lam = run.regimes[number].at_layer(layer).lam
            said = "may, looking ahead" if ahead else "may"
            if ahead and lam < 1:
                said += f", λ = {lam:g}"
        rows.append((name, said, weight(float(seen[number][query, key])) if may else fmt.NONE))
    html.show(widgets.table(("Regime", "Requested", "Observed"), rows, left=(0, 1)))


def _top(
    run: Observed,
    seen: Sequence[np.ndarray],
    allowed: Sequence[np.ndarray],
    pieces: Sequence[str],
    query: int,
) -> None:
    """The keys this query looks at most, under any regime."""
    most = np.max([weights[query] for weights in seen], axis=0)
    reach = np.any([may[query] for may in allowed], axis=0)
    order = [key for key in np.argsort(-most, kind="stable").tolist() if reach[key]][:TOP]
    rows = [
        (
            html.join(f"{key} ", widgets.code_text(fmt.clip(pieces[key], 24))),
            *(
                weight(float(weights[query, key])) if may[query, key] else fmt.NONE
                for weights, may in zip(seen, allowed, strict=True)
            ),
        )
        for key in order
    ]
    widgets.note(f"What token {query} looks at most, in this head:")
    html.show(widgets.table(("Token", *run.names), rows, left=(0,)))


def weight(value: float) -> str:
    """A share of attention with as many digits as it needs."""
    if value == 0:
        return "0 %"
    if value < 1e-5:
        return "< 0.001 %"
    digits = 1 if value >= 0.1 else 2 if value >= 0.01 else 3
    return fmt.percent(value, digits)
