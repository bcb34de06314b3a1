"""The Item page's top bar: where the item stands in the filter, keys to move, a link to copy."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from bidir_ui import analysis, fmt, html, item_view, observed_data, url, widgets
from bidir_ui.filters import FlipFilter, Neighbours


def bar(page: Any, item_id: str, near: Neighbours, chosen: FlipFilter) -> None:
    """Title, position, the four moves (k j p n), the way back, the link."""
    from bidir_ui import shell  # the shell imports this package's pieces first

    title, moves = st.columns([4, 7], vertical_alignment="bottom")
    with title:
        st.page_link(
            shell.path("flips"), label="Flips", icon=":material/arrow_back:",
            query_params=url.params(**chosen.params),
        )  # fmt: skip
        html.show(html.el("h1", fmt.clip(item_id, 60), cls="b-title"))
        among = "in this filter" if chosen.params else "paired items"
        where = (
            f"{fmt.count(near.position + 1)} of {fmt.count(near.total)} {among}"
            if near.position is not None
            else f"Not among the {fmt.count(near.total)} {among}"
        )
        widgets.note(where)
    with moves, st.container(horizontal=True, horizontal_alignment="right", gap="xsmall"):
        for label, key, target, icon in (
            ("Item", "k", near.previous, "chevron_left"),
            ("Item", "j", near.next, "chevron_right"),
            ("Flip", "p", near.previous_flip, "keyboard_double_arrow_left"),
            ("Flip", "n", near.next_flip, "keyboard_double_arrow_right"),
        ):
            back = key in "kp"
            st.button(
                label, key=f"go-{key}", shortcut=key, disabled=target is None,
                icon=f":material/{icon}:", on_click=_go, args=(target,),
                icon_position="left" if back else "right",
                help=f"{'Previous' if back else 'Next'} {label.lower()} in this filter",
            )  # fmt: skip
        with st.popover("Link", icon=":material/link:"):
            widgets.note("Opens this item with these runs and this filter. Copy it:")
            query = url.params(
                a=page.pair.a.id, b=page.pair.b.id, item=item_id, **chosen.params,
                borders=url.get("borders"),
            )  # fmt: skip
            st.code(url.absolute("item", query), language=None, wrap_lines=True)


def raw_record(item_id: str, records: dict[str, dict[str, Any] | None]) -> None:
    """Both runs' records as they are stored, to read and to download."""
    text = json.dumps(records, indent=1, ensure_ascii=False, default=analysis.plain)
    st.code(html.visible(text[:20_000]), language=None, height=360)
    st.download_button(
        "JSON", text, file_name=f"{item_id.replace('/', '_')}.json", mime="application/json",
        key="item-json", on_click="ignore", icon=":material/download:",
    )  # fmt: skip


def observed_links(page: Any, item_id: str) -> None:
    """Links to where a model that ran over this item really looked: the newest run of each pair
    of regimes, of the chosen pair's models."""
    from bidir_ui import shell

    models = {run.model for run in (page.pair.a, page.pair.b) if run is not None}
    newest: dict[tuple[str, ...], observed_data.Observed] = {}
    for one in observed_data.listed(page.runs):
        if one.item == item_id and one.info.model in models:
            newest.setdefault((one.info.model, *one.names), one)
    for one in newest.values():
        st.page_link(
            shell.path("masks"), icon=":material/visibility:",
            label=f"Observed attention: {' and '.join(str(regime) for regime in one.regimes)}",
            query_params=url.params(item=item_id, show="observed", attend=one.info.id),
        )  # fmt: skip


def _go(target: str | None) -> None:
    if target:
        url.put(item=target)


def strips(
    record: dict[str, Any], a: dict[str, Any] | None, b: dict[str, Any] | None
) -> list[tuple[str, list[tuple[str, float, float]]]]:
    """Token differences of the choices that matter: the right one and what each run chose."""
    if not a or not b or a["error"] or b["error"]:
        return []
    names: dict[int, str] = {record["gold"]: "right answer"}
    for run, who in ((a, "baseline's choice"), (b, "candidate's choice")):
        names[run["pred"]] = f"{names[run['pred']]}, {who}" if run["pred"] in names else who
    out = []
    for choice, name in names.items():
        rows = item_view.token_differences(a, b, choice)
        if rows:
            out.append((f"Choice {choice}, {name}", rows))
    return out
