"""Numbers and tables as text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from bidir_core.common.files import visible


def points(fraction: float, *, signed: bool = False) -> str:
    """0.0471 -> ``4.7``; signed ``+4.7``. A true minus sign is not used: tables get parsed."""
    value = round(100 * fraction, 1) + 0.0  # no "-0.0"
    return f"{value:+.1f}" if signed else f"{value:.1f}"


def count(n: int) -> str:
    return f"{n:,}"


MINUS = "−"  # a real minus sign: as wide as the plus, never broken off at a line end


def minus(text: str) -> str:
    """A sentence as pages write it: ``-4.0`` with a real minus (``rows=0-5`` stays)."""
    return re.sub(r"(?<![\w.)-])-(?=\.?\d)", MINUS, text)


TASK_TITLES = {
    "hellaswag": "HellaSwag",
    "piqa": "PIQA",
    "arc_easy": "ARC-Easy",
    "arc_challenge": "ARC-Challenge",
    "winogrande": "WinoGrande",
    "macro": "Macro mean",
}


def task_title(name: str) -> str:
    """A task as its authors write it; any other by its own name."""
    return TASK_TITLES.get(name, name)


def p_text(p: float | None) -> str:
    if p is None:
        return ""
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, left: int = 1) -> str:
    """An aligned text table; the first ``left`` columns and the last are left-aligned."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    last = len(header) - 1
    lines = []
    for row in cells:
        parts = [
            cell.ljust(width) if i < left or i == last else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


def csv_cell(value: Any) -> Any:
    """A CSV's cell: a text that a spreadsheet would run as a formula gets an apostrophe.

    Numbers stay numbers, also those that come as texts.
    """
    if not isinstance(value, str):
        return "" if value is None else value
    text = visible(" ".join(value.split()))
    return "'" + text if text[:1] in tuple("=+-@") and not _NUMBER.fullmatch(text) else text
