"""The Lab page's parts: choosing a sweep, the verdict, curves, the layer map, the chosen point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from bidir_core import store
from bidir_core.lab import curves as layout
from bidir_core.lab import plots
from bidir_ui import fmt, html, lab_data, url, widgets
from bidir_ui.data import EMBEDDED, RunInfo
from bidir_ui.lab_data import MEASURES, UNITS, Lab

COMMAND = f"python -m bidir_core lab --model {EMBEDDED} --limit 50"
COMMANDS = (
    f"{COMMAND} --sweep sink=0,1,2,4,8",
    f"{COMMAND} --sweep lambda=0.001,0.01,0.1,0.3 --sweep layers=windows:5",
    f"{COMMAND} --controls",
)


def choose(sweeps: list[RunInfo]) -> RunInfo | None:
    """The sweep the URL names, else the newest finished one. Draws why there is none."""
    if not sweeps:
        widgets.banner(
            "empty", "No sweep yet",
            "A sweep runs many regimes on one model and shows where the damage comes from. On the "
            "embedded model each of these takes some minutes on two cores:",
        )  # fmt: skip
        widgets.command(*COMMANDS)
        return None
    wanted = url.get("sweep")
    if wanted and wanted not in {run.id for run in sweeps}:
        widgets.banner(
            "error", "Sweep not found",
            html.join("No sweep here is called ", html.el("code", fmt.clip(wanted, 120)), "."),
            "The link may come from another machine, or the sweep was renamed or deleted.",
        )  # fmt: skip
        if st.button("Show the newest sweep", key="newest"):
            url.put(sweep="", point="")
            st.rerun()
        return None
    by_id = {run.id: run for run in sweeps}
    chosen = url.bound(
        st.selectbox, "Sweep", name="sweep", options=list(by_id),
        read=lambda value: value or sweeps[0].id, write=lambda value: value,
        format_func=lambda one: _title(by_id[one]),
    )  # fmt: skip
    return by_id.get(chosen)


def _title(run: RunInfo) -> str:
    said = (run.name, run.model.split("/")[-1], run.extent, run.dtype, run.created, _state(run))
    return html.visible(fmt.clip(" · ".join(filter(None, said)), 140))


def _state(run: RunInfo) -> str:
    return "" if run.is_done else run.state


def state(lab: Lab) -> bool:
    """Say what is partial or broken; False if there is nothing to draw."""
    info, found = lab.info, lab.found
    if info.state == "corrupt":
        widgets.banner("error", "This sweep cannot be read", info.error)
        return False
    if not info.is_done:
        of = f"{found.get('n_points', 0)} of {found.get('n_planned', 0)} points are finished"
        left = f"; {fmt.count(info.n_done)} of {fmt.count(info.n_total)} items scored"
        reason = [info.error] if info.error and info.state != "running" else []
        widgets.banner(
            "info", f"Partial: {info.state}", of + (left if info.n_total else ""), *reason
        )
        if info.state != "running":
            widgets.command(f"python -m bidir_core lab --resume {info.id}")
    if not lab.points:
        widgets.note("Nothing to draw until the first point, the causal reference, is finished.")
    return bool(lab.points)


def verdict(lab: Lab) -> None:
    """The damage, and what the best point does to it."""
    if (best := lab.best) is not None:
        html.show(html.div("b b-verdict", fmt.tie(best["sentence"])))
    damage = lab.numbers("bidirectional").get("delta")
    if damage:
        n = fmt.count(damage["n"])
        widgets.note(
            f"The damage: bidirectional prefill moves macro accuracy from "
            f"{fmt.percent(lab.numbers('causal').get('value'))} to "
            f"{fmt.percent(lab.numbers('bidirectional').get('value'))}, "
            f"{fmt.points(damage['value'])} points {fmt.interval(damage['low'], damage['high'])}, "
            f"n = {n}. Any point but the best is exploratory: it was looked at among many."
        )


def measure_box() -> str:
    """What the charts show."""
    return str(
        url.bound(
            st.segmented_control, "Charts show", name="show", options=list(MEASURES),
            format_func=MEASURES.get, label_visibility="collapsed",
            read=lambda value: value if value in MEASURES else "delta",
            write=lambda value: "" if value in (None, "delta") else value,
        )
        or "delta"
    )  # fmt: skip


def chosen_slug(lab: Lab) -> str:
    """The point the URL names; else the best one, else the first that is no reference."""
    wanted = url.get("point")
    if wanted:
        return wanted
    if lab.best is not None:
        return str(lab.best["slug"])
    others = [point["slug"] for point in lab.points if point["regime"] != "causal"]
    return str((others or ["causal"])[0])


def _on_click(key: str) -> Callable[[], None]:
    def clicked() -> None:
        event: Any = st.session_state.get(key)
        points = event["selection"]["points"] if event else []
        data = points[0].get("customdata") if points else None
        if data:
            url.put(point=data[0] if isinstance(data, (list, tuple)) else data)

    return clicked


def _clickable(figure: Any, alt: str, key: str) -> None:
    widgets.chart(
        figure, alt, key=key, on_select=_on_click(key), selection_mode="points", width="stretch"
    )


def dose_response(lab: Lab, measure: str, slug: str) -> None:
    """One chart per dial that was varied, all else equal."""
    found = layout.curves(lab.points, lab.usual)
    if not found:
        return
    by_dial: dict[str, list[layout.Curve]] = {}
    for curve in found:
        by_dial.setdefault(curve.dial, []).append(curve)
    widgets.heading("Dose and response")
    widgets.note(
        "95 % intervals"
        + (", paired with causal. " if measure != "value" else " of each point alone. ")
        + "Click a point to see what it is and to open it in Compare or Flips."
    )
    columns = st.columns(2 if len(by_dial) > 1 else 1, gap="medium")
    for number, (dial, group) in enumerate(by_dial.items()):
        ticks = dict(tick for curve in group for tick in curve.ticks)
        frames = [
            (curve.name or "nothing else set", lab_data.frame(lab, list(curve.places), measure))
            for curve in group[:4]
        ]
        figure = plots.curves(
            frames, sorted(ticks.items()), x_title=group[0].axis, y_title=_y_title(lab, measure),
            levels=_levels(lab, measure), chosen=slug,
        )  # fmt: skip
        with columns[number % len(columns)]:
            _clickable(
                figure, f"{MEASURES[measure]} over {group[0].axis}; the table below has the numbers.",
                key=f"dose-{dial}-{measure}-{lab.metric}-{lab.info.id}",
            )  # fmt: skip
            if len(group) > 4:
                widgets.note(f"{len(group) - 4} more lines are in the table.")


def _y_title(lab: Lab, measure: str) -> str:
    metric = "" if lab.metric == "acc" else f" ({lab.metric})"
    return {
        "delta": f"points to causal{metric}",
        "value": f"macro accuracy, %{metric}",
        "removed": f"% of the damage removed{metric}",
    }[measure]


def _levels(lab: Lab, measure: str) -> list[tuple[float, str]]:
    """Where causal and bidirectional stand in the measure."""
    levels = []
    for slug in ("causal", "bidirectional"):
        value = lab_data.measured(lab, slug, measure)[0] if lab.point(slug) else float("nan")
        if not np.isnan(value):
            levels.append((value, slug))
    return levels


def layers(lab: Lab, measure: str, slug: str) -> None:
    """A map of layer ranges, and the same as lines with intervals."""
    for others, ranges in layout.layer_ranges(lab.points, lab.usual).items():
        widgets.heading("Which layers" + (f", with {others}" if others else ""))
        widgets.note(
            "Each cell: bidirectional in that range of layers only, causal in the others. "
            + ("A dot: its interval excludes 0. " if measure == "delta" else "")
            + "Click a cell."
        )
        shown = (
            "delta" if measure == "value" else measure
        )  # a map needs a middle that means something
        rows = []
        for one, start, width in ranges:
            y, low, high = lab_data.measured(lab, one, shown)
            sure = shown == "delta" and (low > 0 or high < 0)
            rows.append(
                {"slug": one, "start": start, "width": width, "y": y, "different": sure,
                 "text": lab_data.text(lab, one)}
            )  # fmt: skip
        frame = pd.DataFrame(rows)
        key = f"{shown}-{lab.metric}-{others}-{lab.info.id}"
        _clickable(
            plots.layer_map(frame, lab.n_layers, unit=UNITS[shown], chosen=slug),
            "Layer ranges by first layer and number of layers; the table below has the numbers.",
            key=f"map-{key}",
        )
        _layer_lines(lab, ranges, measure, slug, key)


def _layer_lines(
    lab: Lab, ranges: list[tuple[str, int, int]], measure: str, slug: str, key: str
) -> None:
    """Windows of the three commonest widths, with intervals."""
    by_width: dict[int, list[tuple[str, float]]] = {}
    for one, start, width in sorted(ranges, key=lambda row: row[1]):
        by_width.setdefault(width, []).append((one, float(start)))
    wide = sorted(by_width, key=lambda width: -len(by_width[width]))[:3]
    wide = sorted(width for width in wide if len(by_width[width]) > 1)
    if not wide:
        return
    frames = [
        (f"{width} layer{'s' if width > 1 else ''}", lab_data.frame(lab, by_width[width], measure))
        for width in wide
    ]
    step = 1 if lab.n_layers <= 32 else 4
    ticks = [(float(start), str(start)) for start in range(0, lab.n_layers, step)]
    figure = plots.curves(
        frames, ticks, x_title="first layer of the range", y_title=_y_title(lab, measure),
        levels=_levels(lab, measure), chosen=slug,
    )  # fmt: skip
    _clickable(
        figure, "The same ranges as lines with 95 % intervals.", key=f"lines-{key}-{measure}"
    )


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
        delta, share = numbers.get("delta"), numbers.get("removed")
        kept = share and share["value"] is not None
        query = url.params(sweep=lab.info.id, point=one)
        title = html.el("a", lab_data.name(point), href=url.href("lab", query), target="_self")
        rows.append(
            (
                html.el("b", title) if one == slug else title, fmt.count(point["n"]),
                fmt.percent(numbers.get("value")),
                fmt.points(delta["value"]) if delta else fmt.NONE,
                fmt.interval(delta["low"], delta["high"]) if delta else fmt.NONE,
                fmt.percent(share["value"], 0) if kept else fmt.NONE,
                f"[{fmt.percent(share['low'], 0)}, {fmt.percent(share['high'], 0)}]" if kept else fmt.NONE,
                _links(lab, causal["slug"] if causal else "", one),
            )
        )  # fmt: skip
    head = (
        "Point", "n", "Macro", "To causal, points", "95 % interval", "Damage removed", "95 % interval",
        "Open",
    )  # fmt: skip
    html.show(widgets.table(head, rows, left=(0,)))
    ident = lab.info.id.replace("/", "-")
    widgets.csv_button(lab_data.table(lab), f"{ident}.csv", key="lab-csv")


def _links(lab: Lab, causal: str, slug: str) -> html.Html | str:
    if not causal or causal == slug:
        return fmt.NONE
    query = url.params(a=lab.run_id(causal), b=lab.run_id(slug))
    flips = {**query, "flip": "broken~fixed"}
    return html.join(
        html.el("a", "Compare", href=url.href("compare", query), target="_self"), " · ",
        html.el("a", "Flips", href=url.href("flips", flips), target="_self"),
    )  # fmt: skip


def watch(lab: Lab) -> None:
    """While the sweep runs: its progress, read every two seconds; the page follows its points."""
    if lab.info.state != "running":
        return

    @st.fragment(run_every=2)
    def line() -> None:
        run = store.Run(lab.info.path)
        finished = sum((point.path / "metrics.json").exists() for point in run.points())
        if run.state != "running" or finished > lab.found.get("n_points", 0):
            st.rerun()
        done, total = run.status.get("done"), run.status.get("total")
        widgets.note(
            f"Running: {run.status.get('point', '')} · {fmt.count(done)} of {fmt.count(total)} "
            f"items · about {fmt.duration(run.status.get('eta_seconds'))} left"
        )

    line()
