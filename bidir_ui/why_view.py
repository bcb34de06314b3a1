"""Why an item flips, on its page: what turns the answer back, as strips and sentences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from bidir_core.run_layout import is_read_only
from bidir_core.store import Run
from bidir_core.why_config import name_of
from bidir_ui import fmt, html, why_start, widgets
from bidir_ui.data import RunInfo
from bidir_ui.html import Html, div, el, scrolling, span

RESULT = "why.json"
ROWS = (
    ("single", "this one alone"),
    ("from_first", "the first to this one"),
    ("from_last", "this one to the last"),
)


def section(page: Any, item_id: str, record: Mapping[str, Any], metric: str) -> None:
    """The part of the Item page that explains the candidate's (else the baseline's) reading."""
    target = next((run for run in (page.pair.b, page.pair.a) if _explainable(run)), None)
    if target is None:
        return
    widgets.heading("Why this answer")
    metric = metric if record["pred_norm"] is not None else "acc"
    found = _find(page.runs, target, record, metric)
    if found is not None:
        draw(found[1], found[0].id)
    elif is_read_only():
        widgets.note("Nobody has explained this item yet, and this is a read-only view.")
    else:
        why_start.offer(page, target, record, metric)


def _explainable(run: RunInfo | None) -> bool:
    return (
        run is not None
        and run.kind == "eval"
        and not run.is_reference
        and run.can_pair
        and run.regime != "causal"
    )


def _find(
    runs: Sequence[RunInfo], target: RunInfo, record: Mapping[str, Any], metric: str
) -> tuple[RunInfo, dict[str, Any]] | None:
    """The newest explanation of this very item under the target's model, weights and regime."""
    wanted = (target.model, target.checkpoint, target.regime)
    for info in runs:
        if info.kind != "why" or not info.is_done:
            continue
        if (info.model, info.checkpoint, info.regime) != wanted:
            continue
        settings = Run(info.path).settings
        same = (name_of(str(settings.get("task"))), settings.get("doc_id"), settings.get("metric"))
        if same != (record["task"], record["doc_id"], metric):
            continue
        result = _read(info.path, info.modified)
        if result is not None and result.get("doc_hash") == record["doc_hash"]:
            return info, result
    return None


@st.cache_data(max_entries=32, show_spinner=False)
def _read(path: str, modified: float) -> dict[str, Any] | None:
    try:
        value = json.loads((Path(path) / RESULT).read_text(encoding="utf-8"))
        return value if isinstance(value, dict) and value.get("schema") == 1 else None
    except (OSError, ValueError):
        return None


def draw(result: Mapping[str, Any], run_id: str) -> None:
    """One stored result: sentences, the three strips, their numbers."""
    happened, *found = result["sentences"]
    # A line that quotes tokens stays as it is.
    found = [line if "“" in line else fmt.minus(line) for line in found]
    html.show(div("b b-lead", happened, *(el("div", line) for line in found)))
    unit = "nats a character" if result["metric"] == "acc_norm" else "nats"
    widgets.note(
        "Parts of the attention are put back to causal and the item is scored again. ",
        el("b", "✓"), " the causal answer is back. Green: its lead over the best other choice "
        "recovers; red: it falls further behind. On this item, and with everything else as it "
        "was: what turns the answer back here need not do so elsewhere.",
    )  # fmt: skip
    html.show(html.join(el("h2", "Layers", cls="b-h3"), layer_strip(result)))
    html.show(html.join(el("h2", "Prompt tokens", cls="b-h3"), token_strip(result)))
    html.show(html.join(el("h2", "Strength of the look-ahead", cls="b-h3"), lambda_strip(result)))
    with st.expander("Numbers", key="why-numbers"):
        frame = numbers(result)
        widgets.note(
            f"Lead of the causal answer over the best other choice, in {unit}: causal ",
            fmt.signed(result["causal"]["lead"]), ", as the regime says ",
            fmt.signed(result["opened"]["lead"]), ".",
        )  # fmt: skip
        st.dataframe(frame, hide_index=True, height=280)
        name = f"{run_id.replace('/', '_')}.csv"
        widgets.csv_button(frame, name, key="why-csv")


def recovered(result: Mapping[str, Any], point: Mapping[str, Any]) -> float:
    """How much of the lost lead a restoration brings back: 0 as the regime, 1 as causal."""
    full, none = result["causal"]["lead"], result["opened"]["lead"]
    return (point["lead"] - none) / (full - none) if full != none else 0.0


def _cell(result: Mapping[str, Any], point: Mapping[str, Any], what: str) -> dict[str, str]:
    share = max(-1.0, min(1.0, recovered(result, point)))
    rgb = "0 158 115" if share >= 0 else "213 94 0"
    title = (
        f"{what}: choice {point['choice']}, lead {fmt.signed(point['lead'])}, "
        f"{fmt.percent(recovered(result, point), 0)} recovered"
    )
    return {"style": f"background:rgb({rgb} / {abs(share) * 0.75:.2f})", "title": title}


def _mark(result: Mapping[str, Any], point: Mapping[str, Any]) -> str:
    back = point["choice"] == result["causal"]["choice"]
    return "✓" if back and result["flips"] else ""


def layer_strip(result: Mapping[str, Any]) -> Html:
    """A row for each kind of restoration, a cell a layer."""
    n = result["n_layers"]
    step = 1 if n <= 32 else 5  # more numbers than that stand on each other
    numbers = [el("th", i if i % step == 0 else "", scope="col") for i in range(n)]
    head = el("tr", el("th", "Causal again", scope="col"), *numbers)
    rows = []
    for key, label in ROWS:
        cells = [
            el("td", _mark(result, one), **_cell(result, one, f"Layer {layer}, {label}"))
            for layer, one in enumerate(result["layers"][key])
        ]
        rows.append(el("tr", el("th", label, scope="row"), *cells))
    return scrolling(el("table", el("thead", head), el("tbody", *rows), cls="b b-strip"))


def token_strip(result: Mapping[str, Any]) -> Html:
    """The prompt, each token coloured by what making it alone causal again does."""
    cells = []
    for one in result["tokens"]:
        first, last = one["first"], one["last"]
        text = html.esc("".join(result["pieces"][first : last + 1])[:4000])
        what = f"token {first}" if first == last else f"tokens {first}-{last}"
        mark = _mark(result, one)
        shown = html.join(text, el("small", f" {mark}")) if mark else text
        if one["looks_ahead"]:
            cells.append(span("t", shown, **_cell(result, one, f"{what} causal again")))
        else:
            cells.append(span("t b-soft", shown, title=f"{what}: does not look ahead anyway"))
    return div("b b-heat", *cells, dir="auto")


def _told_apart(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The points on both sides of the threshold, and of the others those well apart."""
    around = [one for one in found["points"] if one["lambda"] in (found["low"], found["high"])]
    kept = list(around)
    for one in found["points"]:
        if all(
            max(one["lambda"], k["lambda"]) >= 1.9 * min(one["lambda"], k["lambda"]) for k in kept
        ):
            kept.append(one)
    return sorted(kept, key=lambda one: one["lambda"])


def lambda_strip(result: Mapping[str, Any]) -> Html:
    """A cell for each lambda tried, the weakest look-ahead first."""
    points = _told_apart(result["lambda"])
    head = [el("th", f"{one['lambda']:.3g}", scope="col") for one in points]
    cells = [
        el("td", _mark(result, one), **_cell(result, one, f"lambda {one['lambda']:.3g}"))
        for one in points
    ]
    return scrolling(
        el(
            "table",
            el("thead", el("tr", el("th", "lambda is", scope="col"), *head)),
            el("tbody", el("tr", el("th", "look-ahead weakened", scope="row"), *cells)),
            cls="b b-strip",
        ),
    )


def numbers(result: Mapping[str, Any]) -> pd.DataFrame:
    """Every point of the strips: the table twin."""
    rows = []

    def add(kind: str, where: str, one: Mapping[str, Any]) -> None:
        share = recovered(result, one)
        rows.append((kind, where, one["choice"], one["lead"], round(100 * share, 1)))

    for key, label in ROWS:
        for layer, one in enumerate(result["layers"][key]):
            add(f"layers: {label}", str(layer), one)
    for one in result["tokens"]:
        span_text = f"{one['first']}" + (f"-{one['last']}" if one["first"] != one["last"] else "")
        add("prompt token", span_text, one)
    for one in result["lambda"]["points"]:
        add("lambda", f"{one['lambda']:g}", one)
    return pd.DataFrame(
        rows, columns=["put back", "where", "choice", "lead of the causal answer", "recovered %"]
    )
