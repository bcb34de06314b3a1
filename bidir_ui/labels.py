"""Names of runs that tell them apart: where two labels collide, what differs is added."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bidir_ui import fmt
from bidir_ui.data import EMBEDDED, RunInfo

# Tried in this order; the folder's name, with its seconds, always differs in the end.
_DIFFERENCES: tuple[Callable[[RunInfo], str], ...] = (
    lambda run: run.stage_label,
    lambda run: run.dtype,
    lambda run: run.steps,
    lambda run: run.name,
    lambda run: "" if run.created == fmt.NONE else run.created,
    lambda run: run.id,
)


def apart(runs: Iterable[RunInfo], label: Callable[[RunInfo], str]) -> dict[str, str]:
    """What to append to each run's label, by run id; empty where the label is its own."""
    out: dict[str, str] = {}
    groups: dict[str, list[RunInfo]] = {}
    for run in {run.id: run for run in runs}.values():
        out[run.id] = ""
        groups.setdefault(label(run), []).append(run)
    for group in groups.values():
        _tell_apart(group, out)
    return out


def _tell_apart(group: list[RunInfo], out: dict[str, str], start: int = 0) -> None:
    if len(group) < 2:
        return
    for number, difference in enumerate(_DIFFERENCES[start:], start):
        parts: dict[str, list[RunInfo]] = {}
        for run in group:
            parts.setdefault(difference(run), []).append(run)
        if len(parts) > 1:
            for text, same in parts.items():
                for run in same:
                    out[run.id] += f" · {text}" if text else ""
                _tell_apart(same, out, number + 1)
            return


def menu(runs: Iterable[RunInfo]) -> dict[str, str]:
    """Labels for a narrow menu, by run id: what distinguishes runs first, and short."""
    runs = tuple(runs)
    extra = apart(runs, _short)
    return {run.id: _short(run) + extra[run.id] for run in runs}


def full(run: RunInfo) -> str:
    """Everything a reader may want to know of the chosen run, for a line that wraps."""
    trained = run.weights if run.checkpoint else ""
    state = "" if run.is_done else run.state
    imported = "imported" if run.is_imported else ""
    parts = (
        run.stage_label, run.regime, trained, run.extent, run.dtype,
        "" if run.model == EMBEDDED else run.model.rsplit("/", 1)[-1], run.name, imported, state,
    )  # fmt: skip
    return " · ".join(part for part in parts if part)


def _short(run: RunInfo) -> str:
    """``sink=1 · limit 500``: the dial without the word that all dialled runs share."""
    regime = run.regime.removeprefix("bidirectional:")
    model = "" if run.model == EMBEDDED else run.model.rsplit("/", 1)[-1]
    parts = (
        run.weights if run.checkpoint else "",
        regime,
        run.extent,
        model,
        "imported" if run.is_imported else "",
        "" if run.is_done else run.state,
    )
    return " · ".join(part for part in parts if part)
