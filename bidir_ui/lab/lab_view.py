"""The Lab page's frame: choosing a sweep, its state, the verdict, what the charts show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from bidir_core.data import item_texts
from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.regimes import in_words, parse_regime
from bidir_core.report import plots_lab
from bidir_core.runs.run import Run
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.lab import lab_data
from bidir_ui.lab.lab_data import MEASURES, UNITS, Lab
from bidir_ui.lab.lab_orders import OrderSet
from bidir_ui.reading.data import RunInfo

SINK = "bidirectional_sink-1"

COMMAND = f"python -m bidir_core lab --model {EMBEDDED_MODEL} --limit 50"

COMMANDS = (
    f"{COMMAND} --preset law",
    f"{COMMAND} --preset order",
    f"{COMMAND} --sweep sink=0,1,2,4,8",
    f"{COMMAND} --sweep lambda=0.001,0.01,0.1,0.3 --sweep layers=windows:5",
    f"{COMMAND} --controls",
)


def choose(
    sweeps: list[RunInfo], orders: list[OrderSet], leading: str
) -> RunInfo | OrderSet | None:
    """The sweep, or set of evaluations on order tasks, that the URL names, else ``leading``, an id,
    or the first sweep to show. Draws why there is none."""
    if not sweeps and not orders:
        widgets.banner(
            "empty",
            "No sweep yet",
            "A sweep runs many regimes on one model and shows where the damage comes from. On the "
            "embedded model each of these takes some minutes on two cores:",
        )
        widgets.command(*COMMANDS)
        return None
    wanted = url.get("sweep")
    titles = {run.id: _title(run) for run in sweeps} | {entry.id: entry.title for entry in orders}
    if wanted and wanted not in titles:
        widgets.banner(
            "error",
            "Sweep not found",
            html.join("No sweep here is called ", html.el("code", fmt.clip(wanted, 120)), "."),
            "The link may come from another machine, or the sweep was renamed or deleted.",
        )
        if st.button("Show the usual sweep", key="usual-sweep"):
            url.put(sweep="", point="")
            st.rerun()
        return None
    first = leading if leading in titles else ""
    if not first:
        first = lab_data.first_shown(sweeps).id if sweeps else orders[0].id
    chosen = url.bound(
        st.selectbox,
        "Sweep",
        name="sweep",
        options=list(titles),
        read=lambda value: value or first,
        write=lambda value: value,
        format_func=lambda run_id: titles[run_id],
    )
    every: list[RunInfo | OrderSet] = [*sweeps, *orders]
    return next((entry for entry in every if entry.id == chosen), None)


def _title(run: RunInfo) -> str:
    parts = (
        run.name,
        run.model.split("/")[-1],
        run.extent,
        run.dtype,
        run.created,
        "" if run.is_done else run.state,
    )
    return item_texts.visible(fmt.clip(" · ".join(filter(None, parts)), 140))


def state(lab: Lab) -> bool:
    """Draw what is partial or broken; False if there is nothing to draw."""
    info, summary = lab.info, lab.found
    if info.state == "corrupt":
        widgets.banner("error", "This sweep cannot be read", info.error)
        return False
    if not info.is_done:
        counts = (
            f"{summary.get('n_points', 0)} of {summary.get('n_planned', 0)} points are finished"
        )
        scored = f"; {fmt.count(info.n_done)} of {fmt.count(info.n_total)} items scored"
        reason = [info.error] if info.error and info.state != "running" else []
        widgets.banner(
            "info", f"Partial: {info.state}", counts + (scored if info.n_total else ""), *reason
        )
        if info.state != "running":
            widgets.command(f"python -m bidir_core lab --resume {info.id}")
    if not lab.points:
        widgets.note("Nothing to draw until the first point, the causal reference, is finished.")
    return bool(lab.points)


def verdict(lab: Lab) -> None:
    """The law if layers=A- were swept, the damage, and what the best point does to it."""
    if law := lab_data.law(lab):
        html.show(html.div("b b-verdict", fmt.tie(law["sentence"])))
    elif (best := lab.best) is not None:
        html.show(html.div("b b-verdict", fmt.tie(best["sentence"])))
        if meaning := in_words(parse_regime(best["regime"])):
            widgets.note(f"{best['regime'].removeprefix('bidirectional:')}: {meaning}.")
    elif lab.point(SINK):  # nothing was chosen: the controls ask about this one
        html.show(html.div("b b-verdict", fmt.tie(lab_data.sentence(lab, SINK))))
    damage = lab.numbers("bidirectional").get("delta")
    if damage:
        n = fmt.count(damage["n"])
        widgets.note(
            f"The damage: bidirectional prefill moves macro accuracy from "
            f"{fmt.percent(lab.numbers('causal').get('value'))} to "
            f"{fmt.percent(lab.numbers('bidirectional').get('value'))}, "
            f"{fmt.points(damage['value'])} points {fmt.interval(damage['low'], damage['high'])}, "
            f"n = {n}."
            + (
                " The headline's point was chosen on half of the items and judged on the other half; "
                "all other numbers here are exploratory."
                if lab.best and not lab.best["exploratory"]
                else ""
            )
        )


def chosen_slug(lab: Lab) -> str:
    """The point the URL names; else the one that the headline is about, else the first that is no
    reference."""
    wanted = url.get("point") or lab_data.law_slug(lab)
    if wanted:
        return wanted
    if lab.best is not None:
        return str(lab.best["slug"])
    if lab.point(SINK):
        return SINK
    others = [point["slug"] for point in lab.points if point["regime"] != "causal"]
    return str((others or ["causal"])[0])


def watch(lab: Lab) -> None:
    """While the sweep runs: its progress, read every two seconds; the page follows its points."""
    if lab.info.state != "running":
        return

    @st.fragment(run_every=2)
    def line() -> None:
        run = Run(lab.info.path)
        finished = sum((point.path / "metrics.json").exists() for point in run.points())
        if run.state != "running" or finished > lab.found.get("n_points", 0):
            st.rerun()
        done, total = run.status.get("done"), run.status.get("total")
        widgets.note(
            f"Running: {run.status.get('point', '')} · {fmt.count(done)} of {fmt.count(total)} "
            f"items · about {fmt.duration(run.status.get('eta_seconds'))} left"
        )

    line()


# The Lab page's charts: dose and response, and the map of layers. A click chooses a point.


def any_to_draw(lab: Lab) -> bool:
    """Whether a dial or a layer range was varied."""
    return bool(plots_lab.curve_lines(lab.points, lab.usual) or _layer_ranges(lab))


def _layer_ranges(lab: Lab) -> dict[str, list[tuple[str, int, int]]]:
    by_others = plots_lab.layer_ranges(lab.points, lab.usual)
    return {others: ranges for others, ranges in by_others.items() if len(ranges) > 1}


def _clickable(figure: Any, alt: str, key: str) -> None:
    def clicked() -> None:
        event: Any = st.session_state.get(key)
        points = event["selection"]["points"] if event else []
        data = points[0].get("customdata") if points else None
        if data:
            url.put(point=data[0] if isinstance(data, (list, tuple)) else data)

    widgets.chart(figure, alt, key=key, on_select=clicked, selection_mode="points", width="stretch")


def dose_response(lab: Lab, measure: str, slug: str) -> None:
    """One chart per dial that was varied, all else equal."""
    lines = plots_lab.curve_lines(lab.points, lab.usual)
    if not lines:
        return
    by_dial: dict[str, list[plots_lab.Curve]] = {}
    for curve in lines:
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
        figure = plots_lab.curves(
            frames,
            sorted(ticks.items()),
            x_title=group[0].axis,
            y_title=_y_title(lab, measure),
            levels=_levels(lab, measure),
            chosen=slug,
        )
        with columns[number % len(columns)]:
            _clickable(
                figure,
                f"{MEASURES[measure]} over {group[0].axis}; the table below has the numbers.",
                key=f"dose-{dial}-{measure}-{lab.metric}-{lab.info.id}",
            )
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
    for others, ranges in _layer_ranges(lab).items():
        widgets.heading("Which layers" + (f", with {others}" if others else ""))
        widgets.note(
            "Each cell: bidirectional in that range of layers only, causal in the others. "
            + ("A dot: different from causal. " if measure == "delta" else "")
            + "Click a cell."
        )
        # The colours need a middle that means something, which accuracies do not have.
        shown = "delta" if measure == "value" else measure
        rows = []
        for point, start, width in ranges:
            judged = lab_data.judged(lab, point)
            rows.append(
                {
                    "slug": point,
                    "start": start,
                    "width": width,
                    "y": lab_data.measured(lab, point, shown)[0],
                    "different": shown == "delta" and judged is not None and judged.decided,
                    "text": lab_data.text(lab, point),
                }
            )
        frame = pd.DataFrame(rows)
        key = f"{shown}-{lab.metric}-{others}-{lab.info.id}"
        _clickable(
            plots_lab.layer_map(frame, lab.n_layers, unit=UNITS[shown], chosen=slug),
            "Layer ranges by first layer and number of layers; the table below has the numbers.",
            key=f"map-{key}",
        )
        _layer_lines(lab, ranges, measure, slug, key)


def _layer_lines(
    lab: Lab, ranges: list[tuple[str, int, int]], measure: str, slug: str, key: str
) -> None:
    """Windows of the three commonest widths, with intervals."""
    by_width: dict[int, list[tuple[str, float]]] = {}
    for point, start, width in sorted(ranges, key=lambda row: row[1]):
        by_width.setdefault(width, []).append((point, float(start)))
    wide = sorted(by_width, key=lambda width: -len(by_width[width]))[:3]
    wide = sorted(width for width in wide if len(by_width[width]) > 1)
    if not wide:
        return
    frames = [
        (f"{width} layer{'s' if width > 1 else ''}", lab_data.frame(lab, by_width[width], measure))
        for width in wide
    ]
    ticks = [(float(n), str(n)) for n in range(lab.n_layers)]
    figure = plots_lab.curves(
        frames,
        ticks,
        x_title="first layer of the range",
        y_title=_y_title(lab, measure),
        levels=_levels(lab, measure),
        chosen=slug,
        room=0.5,
    )
    _clickable(
        figure, "The same ranges as lines with 95 % intervals.", key=f"lines-{key}-{measure}"
    )
