"""How numbers and names are written on every page: one place, so they always look alike."""

from __future__ import annotations

import math
from datetime import datetime
from typing import TYPE_CHECKING

from bidir_core.common import formatting
from bidir_core.common.formatting import MINUS, minus
from bidir_core.runs.layout import LAB, STAGES

if TYPE_CHECKING:
    from bidir_core.analyse.stats import Estimate

NONE = "–"

STAGE_LABELS = {folder: stage.name for folder, stage in STAGES.items()} | {LAB: "Lab"}
FLIP_LABELS = {
    "broken": "▼ broken",
    "fixed": "▲ fixed",
    "changed_wrong": "◇ other wrong",
    "same_right": "● both right",
    "same_wrong": "○ same wrong",
}
STATE_MARKS = {
    "done": "● done",
    "running": "◐ running",
    "queued": "○ queued",
    "lost": "✕ lost",
    "failed": "✕ failed",
    "cancelled": "– cancelled",
    "partial": "◑ partial",
    "corrupt": "✕ corrupt",
    "reference": "□ published",
}


def missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def number(value: float | None, digits: int = 2) -> str:
    """``-1.234`` as ``−1.23``; nothing as an en dash."""
    if missing(value):
        return NONE
    text = f"{abs(float(value)):,.{digits}f}"  # type: ignore[arg-type]
    return MINUS + text if float(value) < 0 and float(text.replace(",", "")) else text  # type: ignore[arg-type]


def signed(value: float | None, digits: int = 2) -> str:
    if missing(value):
        return NONE
    text = number(value, digits)
    return text if text.startswith(MINUS) or float(text.replace(",", "")) == 0 else "+" + text


def percent(value: float | None, digits: int = 1) -> str:
    """A share of 1 as ``45.3 %``."""
    return NONE if missing(value) else number(100 * float(value), digits) + " %"  # type: ignore[arg-type]


def points(value: float | None, digits: int = 1) -> str:
    """A difference of two shares in percentage points, signed."""
    return NONE if missing(value) else signed(100 * float(value), digits)  # type: ignore[arg-type]


def interval(low: float | None, high: float | None, digits: int = 1) -> str:
    """A 95 % interval of a difference, in points: ``[−6.2, −3.1]``."""
    if missing(low) or missing(high):
        return "no interval"
    return f"[{points(low, digits)}, {points(high, digits)}]"


def interval_of(estimate: Estimate | None) -> str:
    return interval(estimate.low, estimate.high) if estimate else "no interval"


def count(value: float | None) -> str:
    return NONE if missing(value) else f"{int(value):,}"  # type: ignore[arg-type]


def duration(seconds: float | None) -> str:
    if missing(seconds):
        return NONE
    total = round(float(seconds))  # type: ignore[arg-type]
    if total < 60:
        return f"{float(seconds):.1f} s" if total < 10 else f"{total} s"  # type: ignore[arg-type]
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def size(n_bytes: float | None) -> str:
    if not n_bytes:
        return NONE
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.0f} MB"


def date(folder: str) -> str:
    """The UTC date and time in a run folder's name; an en dash where there is none."""
    try:
        return datetime.strptime(folder[:15], "%Y%m%d-%H%M%S").strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return NONE


def stage(stage_dir: str) -> str:
    return STAGE_LABELS.get(stage_dir, stage_dir)


def task(name: str) -> str:
    return formatting.task_title(name)


def flip(name: str) -> str:
    return FLIP_LABELS.get(name, name)


def clip(text: str, length: int = 120) -> str:
    """At most ``length`` characters, on one line."""
    text = " ".join(text[: 4 * length].split())
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def tie(text: str) -> str:
    """A real minus, and ``n = 2,299`` and ``45.3 %`` on one line each."""
    return (
        minus(text)
        .replace("n = ", "n\u00a0=\u00a0")
        .replace(" %", "\u00a0%")
        .replace("% CI ", "%\u00a0CI ")
    )
