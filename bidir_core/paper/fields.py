"""A field of a run's JSON file by its dotted name."""

from __future__ import annotations

from typing import Any

from bidir_core.store import Run

MACRO = "macro"  # in the place of a task: their mean


def lookup(run: Run, file: str, field: str) -> Any:
    """A dotted field of a run's JSON file, or None."""
    files = {"config.json": run.config, "metrics.json": run.metrics, "probe.json": run.probe}
    return _walk(files[file], field.split("."))


def _walk(value: Any, names: list[str]) -> Any:
    """Longest keys first: the name of a custom task may hold a dot."""
    for end in range(len(names), 0, -1):
        key = ".".join(names[:end])
        if isinstance(value, dict) and key in value:
            return _walk(value[key], names[end:])
    return None if names else value
