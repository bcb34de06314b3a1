"""The file of ``why --export``: items with their answers at every setting of three dials.

how strongly the prompt looks ahead (lambda) x the first token causal (sink=1) or not
    x how many of the first layers stay causal (layers=A-)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bidir_core.common.errors import UserError
from bidir_core.common.files import Damaged, read_json, replacing
from bidir_core.runs.layout import COMMITTED_RUNS

SCHEMA = 1
STRENGTHS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 0.6, 1.0)
COMMITTED = COMMITTED_RUNS / "dials.json"


def read_dials(path: Path | str = COMMITTED) -> list[dict[str, Any]]:
    """The items of a file that ``why --export`` wrote; none if there is no such file.

    ``scores[sink][A][strength][choice]`` of an item: hundredths of a nat behind the likeliest choice.
    """
    try:
        value = read_json(Path(path))
    except FileNotFoundError:
        return []
    except Damaged as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise UserError(f"{path} is no file of `why --export` that this program reads")
    return list(value["items"])


def write_dials(items: Sequence[Mapping[str, Any]], path: Path | str) -> None:
    """An item a line, whole or not at all."""
    lines = ",\n".join(
        json.dumps(item, separators=(",", ":"), ensure_ascii=False) for item in items
    )
    head = json.dumps({"schema": SCHEMA, "strengths": STRENGTHS})[:-1]
    with replacing(Path(path)) as partial:
        partial.write_text(f'{head}, "items": [\n{lines}\n]}}\n', encoding="utf-8")
