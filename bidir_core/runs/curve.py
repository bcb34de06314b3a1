"""``curve.jsonl``: how a fine-tune went, a line at a time.

A line of training: ``step`` (steps done), ``tokens`` (useful ones so far), ``loss_tokens``,
``seconds`` (of training alone), ``loss`` (nats per predicted token, mean since the line before),
``anchor`` (likewise, if there is one), ``lr``, ``grad_norm``, ``tokens_per_second``. A line of a
quick evaluation: ``step``, ``tokens``, ``seconds`` and ``evals``, by regime.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bidir_core.common.files import Damaged, replacing
from bidir_core.runs.read import read_lines
from bidir_core.runs.shapes import CURVE_LINE, problem

FILE = "curve.jsonl"


def append_curve(run: Path, line: Mapping[str, Any]) -> None:
    """Add one line and make it survive a kill."""
    with open(run / FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_curve(run: Path) -> list[dict[str, Any]]:
    """The lines that are whole; a torn last line and a missing or damaged file are no error."""
    try:
        return [line for line in read_lines(run / FILE)[0] if not problem(line, CURVE_LINE)]
    except Damaged:
        return []


def cut_curve(run: Path, step: int) -> None:
    """Forget what a resumed run will do again: lines after ``step``."""
    kept = [line for line in read_curve(run) if line.get("step", 0) <= step]
    with replacing(run / FILE) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
