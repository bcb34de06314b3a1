"""One real item whose answer flips as the reader moves the dials. Everything was computed before
(``python -m bidir_core why --export``): the browser only looks it up, so a move asks no server."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import streamlit as st

from bidir_core.analyse import selection
from bidir_core.common.errors import UserError
from bidir_core.data.assets import title_of
from bidir_core.data.item_texts import visible
from bidir_core.runs.dials import COMMITTED, STRENGTHS, read_dials
from bidir_core.runs.layout import STAGE4
from bidir_ui.kit import url, widgets
from bidir_ui.reading import data
from bidir_ui.reading.data import RunInfo, by_id

HERE = Path(__file__).parent


def draw(runs: Sequence[RunInfo]) -> None:
    """The item and its dials; nothing where no item was exported."""
    shown = [_shown(item, runs) for item in items()]
    if not shown:
        return
    widgets.heading("Flip an answer")
    component = st.components.v2.component(
        "bidir_hero", js=(HERE / "hero.js").read_text(encoding="utf-8"), isolate_styles=False
    )
    component(data={"items": shown, "strengths": STRENGTHS}, key="hero")


def items() -> list[dict[str, Any]]:
    """What was exported."""
    return _items(COMMITTED.stat().st_mtime_ns if COMMITTED.exists() else 0)


@lru_cache(maxsize=2)
def _items(_modified: int) -> list[dict[str, Any]]:
    return read_dials()


def _shown(item: dict[str, Any], runs: Sequence[RunInfo]) -> dict[str, Any]:
    """What the browser needs of an item: its texts inert, its scores, where it is opened."""
    kept = ("gold", "n_prefix", "n_layers", "scores", "item")
    return {
        **{name: item[name] for name in kept},
        "title": title_of(item["model"]),
        "text": visible(item["context"]),
        "choices": [visible(text) for text in item["choices"]],
        "repaired": _repaired(item, runs),
        "href": url.href("item", _pair(item, runs) | {"item": item["item"]}),
    }


def _pair(item: dict[str, Any], runs: Sequence[RunInfo]) -> dict[str, str]:
    """The run that the item was read as, and its causal partner, if both are here."""
    run = by_id(tuple(runs), item["run"] or "")
    if run is None:
        return {}
    if run.is_point:
        causal = by_id(tuple(runs), run.id.rpartition("/")[0] + "/causal")
    else:
        causal = selection.baseline_of(runs, run, None)
    return {"a": causal.id, "b": run.id} if causal is not None else {}


def _repaired(item: dict[str, Any], runs: Sequence[RunInfo]) -> list[int] | None:
    """The scores that a repair fine-tune of this model recorded for the item, looking ahead."""
    task = item["item"].rpartition("/")[0]
    for run in runs:
        is_repaired = run.stage == STAGE4 and run.arm is not None and run.arm.code == "3B"
        if not (is_repaired and run.is_done and run.has_items and run.model == item["model"]):
            continue
        if run.regime != "bidirectional" or task not in run.tasks:
            continue
        try:
            record = data.record(run, item["item"])
        except UserError:
            continue
        if record is not None and record["ll"] is not None:
            return [round(100 * (value - max(record["ll"]))) for value in record["ll"]]
    return None
