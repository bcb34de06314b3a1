"""The Lab page's points: the chosen one in words, every one in a table, and where they open."""

from __future__ import annotations

import streamlit as st

from bidir_ui import fmt, html, lab_data, url, widgets
from bidir_ui.lab_data import Lab

NO_ITEMS = "This sweep was kept for its numbers, without its items: Compare and Flips cannot open its points."


def point_card(lab: Lab, slug: str) -> None:
    """The chosen point in words, and where it opens."""
    point = lab.point(slug)
    if point is None:
        widgets.banner(
            "error", "Point not found",
            html.join("This sweep has no finished point ", html.el("code", fmt.clip(slug, 100)), "."),
        )  # fmt: skip
        return
    numbers = lab.numbers(slug)
    delta = numbers.get("delta")
    causal = lab.causal_of(point)
    rows = [
        ("point", lab_data.name(point)),
        ("accuracy", f"{fmt.percent(numbers.get('value'))}, n = {fmt.count(point['n'])}"),
    ]
    if delta:
        rows.append(
            (
                "to causal",
                f"{fmt.points(delta['value'])} points {fmt.interval(delta['low'], delta['high'])}, "
                f"{widgets.direction(delta['low'], delta['high'])[1]}",
            )
        )
        if slug != "bidirectional":
            rows.append(("in words", fmt.tie(lab_data.sentence(lab, slug))))
    cells = [part for key, value in rows for part in (html.el("dt", key), html.el("dd", value))]
    with st.container(border=True, key="lab-point"):
        html.show(html.el("h2", "The chosen point", cls="b-h3"))
        html.show(html.el("dl", *cells, cls="b b-kv"))
        if causal is None or causal["slug"] == slug:
            widgets.note("The reference itself: choose another point to compare it with this one.")
            return
        if not lab.has_items:
            widgets.note(NO_ITEMS)
            return
        plain = lab.point("bidirectional")
        with st.container(horizontal=True):
            _link("compare", "Compare with causal", "balance", lab, causal["slug"], slug)
            _link("flips", "Flips against causal", "swap_vert", lab, causal["slug"], slug)
            if plain and slug != "bidirectional" and plain["condition"] == point["condition"]:
                _link(
                    "flips", "Flips against bidirectional", "swap_vert", lab, "bidirectional", slug
                )


def _link(page: str, label: str, icon: str, lab: Lab, a: str, b: str) -> None:
    query = url.params(a=lab.run_id(a), b=lab.run_id(b))
    if page == "flips":
        query["flip"] = "broken~fixed"
    st.page_link(f"pages/{page}.py", label=label, icon=f":material/{icon}:", query_params=query)


def table(lab: Lab, slug: str) -> None:
    """The charts' twin: every point with its numbers, its intervals and its links."""
    rows = []
    for point in lab.points:
        one = point["slug"]
        numbers, causal = lab.numbers(one), lab.causal_of(point)
        delta, share = numbers.get("delta"), numbers.get("removed") or {}
        stated = share.get("value") is not None
        query = url.params(sweep=lab.info.id, point=one)
        title = html.el("a", lab_data.name(point), href=url.href("lab", query), target="_self")
        rows.append(
            (
                html.el("b", title) if one == slug else title, fmt.count(point["n"]),
                fmt.percent(numbers.get("value")),
                fmt.points(delta["value"]) if delta else fmt.NONE,
                fmt.interval(delta["low"], delta["high"]) if delta else fmt.NONE,
                fmt.percent(share.get("value"), 0),
                f"[{fmt.percent(share['low'], 0)}, {fmt.percent(share['high'], 0)}]" if stated else fmt.NONE,
                _links(lab, causal["slug"] if causal else "", one),
            )
        )  # fmt: skip
    head = (
        "Point", "n", "Macro", "To causal, points", "95 % interval", "Damage removed", "95 % interval",
        "Open",
    )  # fmt: skip
    html.show(widgets.table(head, rows, left=(0,)))


def download(lab: Lab) -> None:
    """Every number of every point; the file's name carries the sweep's id."""
    ident = lab.info.id.replace("/", "-")
    widgets.csv_button(lab_data.table(lab), f"{ident}.csv", key="lab-csv")


def _links(lab: Lab, causal: str, slug: str) -> html.Html | str:
    if not causal or causal == slug or not lab.has_items:
        return fmt.NONE
    query = url.params(a=lab.run_id(causal), b=lab.run_id(slug))
    flips = {**query, "flip": "broken~fixed"}
    return html.join(
        html.el("a", "Compare", href=url.href("compare", query), target="_self"), " · ",
        html.el("a", "Flips", href=url.href("flips", flips), target="_self"),
    )  # fmt: skip
