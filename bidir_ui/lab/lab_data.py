"""Sweeps as the Lab page reads them: a summary, complete or of the points finished so far."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from bidir_core.analyse.stats import Estimate
from bidir_core.analyse.verdict import Judgement, judge
from bidir_core.explain.controls import same_prompts
from bidir_core.explain.sweep_outcomes import Sweep, law_summary
from bidir_core.explain.sweep_points import patch_words
from bidir_core.explain.sweep_summary import removed_sentence, summarise_sweep
from bidir_core.regimes import parse_regime
from bidir_core.runs.run import Run
from bidir_ui.kit import fmt, widgets
from bidir_ui.reading.data import BY_CHANGE, RunInfo

MEASURES = {"delta": "Difference to causal", "value": "Accuracy", "removed": "Damage removed"}
UNITS = {"delta": "points", "value": "%", "removed": "% of the damage"}


@dataclass(frozen=True)
class Lab:
    """One sweep. ``found``: its summary (see bidir_core.explain.sweep_summary)."""

    info: RunInfo
    found: dict[str, Any]
    metric: str

    @property
    def points(self) -> list[dict[str, Any]]:
        return self.found.get("points") or []

    @property
    def usual(self) -> dict[str, Any]:
        """The sweep's own prompt condition: that of its first point, the causal reference."""
        return self.points[0]["condition"] if self.points else {}

    @property
    def settings(self) -> dict[str, Any]:
        return Run(self.info.path).settings

    @property
    def n_layers(self) -> int:
        """From its config or, for want of it, from the layers its points name."""
        known = Run(self.info.path).config.get("n_layers")
        if isinstance(known, int):
            return known
        spans = (parse_regime(point["regime"]).layers for point in self.points)
        ends = (max(span[0], span[1] or 0) for span in spans if span)
        return max((last + 1 for last in ends), default=1)

    def point(self, slug: str) -> dict[str, Any] | None:
        return next((point for point in self.points if point["slug"] == slug), None)

    def numbers(self, slug: str) -> dict[str, Any]:
        """A point's numbers in the chosen measure of accuracy."""
        point = self.point(slug)
        return (point or {}).get(self.metric) or {}

    def causal_of(self, point: dict[str, Any]) -> dict[str, Any] | None:
        """The causal point in the same prompt condition."""
        same = (p for p in self.points if p["condition"] == point["condition"])
        return next((p for p in same if p["regime"] == "causal" and not p.get("patch")), None)

    def run_id(self, slug: str) -> str:
        return f"{self.info.id}/points/{slug}"

    @property
    def has_items(self) -> bool:
        """Whether its points can be opened: a sweep may be kept for its numbers alone."""
        return any((Path(self.info.path) / "points").glob("*/items.parquet"))

    @property
    def best(self) -> dict[str, Any] | None:
        return (self.found.get("best") or {}).get(self.metric)


def sweeps(runs: tuple[RunInfo, ...]) -> list[RunInfo]:
    """Every sweep, finished ones first, newest first."""
    return sorted((run for run in runs if run.is_sweep), key=lambda run: not run.is_done)


def first_shown(sweeps: list[RunInfo]) -> RunInfo:
    """Of sweeps as :func:`sweeps` has them, the newest finished one; of several that were begun
    within an hour of it, the one with most points."""
    newest = sweeps[0]
    together = [run for run in sweeps if run.is_done == newest.is_done and _near(run, newest)]
    return max(together, key=_n_points)  # of equal ones the newest


def _near(run: RunInfo, other: RunInfo) -> bool:
    try:
        times = [datetime.strptime(each.created, "%Y-%m-%d %H:%M") for each in (run, other)]
    except ValueError:  # a folder whose time is not known
        return run is other
    return abs(times[0] - times[1]) <= timedelta(hours=1)


def _n_points(info: RunInfo) -> float:
    return (info.n_total or 0) / info.n_items if info.n_items else 0


def has_controls(info: RunInfo, lab: Lab) -> bool:
    """Whether another finished sweep has the controls of this one's model and prompts."""
    if not info.is_done or info.id == lab.info.id or info.model != lab.info.model:
        return False
    settings = Run(info.path).settings
    return bool(settings.get("controls")) and same_prompts(lab.settings, settings)


def load(info: RunInfo, runs: tuple[RunInfo, ...], metric: str) -> Lab:
    """A finished sweep's summary, or one of what is there so far."""
    prefix = f"{info.id}/points/"
    stamps = tuple(sorted((r.id, r.modified) for r in runs if r.id.startswith(prefix)))
    with widgets.waiting("Reading the sweep's points", 64, 96, 420):
        return Lab(info, _summary(info, stamps), metric)


@st.cache_data(max_entries=16, show_spinner=False, hash_funcs=BY_CHANGE)
def _summary(info: RunInfo, stamps: tuple[Any, ...]) -> dict[str, Any]:
    run = Run(info.path)
    if run.metrics is not None:
        return run.metrics
    return summarise_sweep(run) if run.state != "corrupt" else {}


def law(lab: Lab) -> dict[str, Any]:
    """From which layer on looking ahead costs nothing; empty without such a sweep."""
    if "law" in lab.found:
        return (lab.found["law"] or {}).get(lab.metric) or {}
    opened = any(re.search(r"layers=\d+-$", point["regime"]) for point in lab.points)
    return _law(lab.info, lab.metric) if opened and lab.has_items else {}


@st.cache_data(max_entries=16, show_spinner=False, hash_funcs=BY_CHANGE)
def _law(info: RunInfo, metric: str) -> dict[str, Any]:
    """The same of a sweep from before its law was kept with it."""
    return law_summary(Sweep(Run(info.path)), metric) or {}


def law_slug(lab: Lab) -> str | None:
    """The point that the law is about, if it names one."""
    regime = f"bidirectional:layers={law(lab).get('first_layer')}-"
    points = (p for p in lab.points if p["regime"] == regime and p["condition"] == lab.usual)
    return next((p["slug"] for p in points if not p.get("patch")), None)


def measured(lab: Lab, slug: str, measure: str) -> tuple[float, float, float]:
    """(value, low, high) of a point in points or percent; NaN where not stated."""
    nan = float("nan")
    numbers, point = lab.numbers(slug), lab.point(slug)
    if measure == "value":
        value, half = numbers.get("value"), numbers.get("half_width")
        if value is None:
            return nan, nan, nan
        spread = half if half is not None else nan
        return 100 * value, 100 * (value - spread), 100 * (value + spread)
    if point is not None and point["regime"] == "causal":
        return (0.0, nan, nan) if measure == "delta" else (100.0, nan, nan)
    plain = point is not None and point["regime"] == "bidirectional" and not point.get("patch")
    if measure == "removed" and plain:
        return 0.0, nan, nan
    estimate = numbers.get(measure)
    if not estimate or estimate["value"] is None:
        return nan, nan, nan
    return 100 * estimate["value"], 100 * estimate["low"], 100 * estimate["high"]


def judged(lab: Lab, slug: str) -> Judgement | None:
    """What a point's paired difference to causal allows to be said; None without one."""
    delta = lab.numbers(slug).get("delta")
    if not delta:
        return None
    estimate = Estimate(*(delta[name] for name in ("value", "low", "high", "n")))
    p = delta.get("p_value")  # of one task alone
    return judge(estimate, p_values=[] if p is None else [p])


def text(lab: Lab, slug: str) -> str:
    """A point in one line, for hovering."""
    numbers, point = lab.numbers(slug), lab.point(slug) or {}
    parts = [name(point), f"accuracy {fmt.percent(numbers.get('value'))}"]
    if delta := numbers.get("delta"):
        parts.append(
            f"{fmt.points(delta['value'])} points {fmt.interval(delta['low'], delta['high'])}"
        )
    parts.append(f"n = {fmt.count(point.get('n'))}")
    return " · ".join(parts)


def name(point: dict[str, Any]) -> str:
    """What a point is, in a few words: regime, patch, prompt condition."""
    edit = patch_words(point.get("patch"))
    parts = (str(point.get("regime")), edit, str(point.get("condition_words") or ""))
    return " · ".join(filter(None, parts))


def sentence(lab: Lab, slug: str) -> str:
    """What a point does to the damage, in words and with its interval."""
    point = lab.point(slug) or {}
    short = name(point).removeprefix("bidirectional:")
    return removed_sentence(short, lab.numbers(slug)) + "."


def frame(lab: Lab, places: list[tuple[str, float]], measure: str) -> pd.DataFrame:
    """Rows for :func:`bidir_core.report.plots_lab.curves`."""
    rows = []
    for slug, x in places:
        y, low, high = measured(lab, slug, measure)
        rows.append(
            {"slug": slug, "x": x, "y": y, "low": low, "high": high, "text": text(lab, slug)}
        )
    return pd.DataFrame(rows)


def table(lab: Lab) -> pd.DataFrame:
    """Every point and every number of it, for the CSV."""
    rows = []
    for point in lab.points:
        row: dict[str, Any] = {"point": lab.run_id(point["slug"])}
        row |= {name: point.get(name) for name in ("regime", "patch")}
        row |= {"condition": point["condition_words"], "part": point["part"], "n": point["n"]}
        for metric in ("acc", "acc_norm"):
            numbers = point[metric]
            row[metric] = numbers["value"]
            for key in ("delta", "removed"):
                for end in ("value", "low", "high"):
                    row[f"{metric}_{key}_{end}"] = (numbers[key] or {}).get(end)
        rows.append(row)
    return pd.DataFrame(rows)
