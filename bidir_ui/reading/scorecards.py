"""The scorecard of the finished runs, and the pair of the model that leads it."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import streamlit as st

from bidir_core.common.process import give_back
from bidir_core.report.scorecard import Row, scorecard
from bidir_core.runs.layout import runs_roots
from bidir_ui.kit import widgets
from bidir_ui.reading import data
from bidir_ui.reading.data import RunInfo


def rows(runs: Sequence[RunInfo], limit: int | None = None) -> list[Row]:
    """Remembered until a finished run comes, goes or changes."""
    with widgets.waiting("Reading the evidence", 53, 104, 179):
        return _scored(runs, limit)


def look_ahead() -> None:
    """What nearly every page asks first. It stays: Streamlit, which collects garbage after each
    script, need not look through it then."""
    _scored(data.list_infos())
    gc.collect()
    gc.freeze()


def _scored(runs: Sequence[RunInfo], limit: int | None = None) -> list[Row]:
    scored = _rows(_Finished([run for run in runs if run.is_done or run.is_reference]), limit)
    if limit is None:
        _last_rows()[_roots()] = scored
    return scored


class _Finished(list[RunInfo]):
    """Runs, as a key of what is remembered."""


@st.cache_resource(
    max_entries=4,
    show_spinner=False,
    # One text: of a list Streamlit hashes each part alone.
    hash_funcs={_Finished: lambda runs: str([(run.path, run.modified) for run in runs])},
)
def _rows(runs: _Finished, limit: int | None) -> list[Row]:
    scored = scorecard(map(data.run_of, runs), limit=limit)
    give_back()  # the items and texts of every run were in memory
    return scored


@st.cache_resource(show_spinner=False)
def _last_rows() -> dict[tuple[str, ...], list[Row]]:
    """The whole scorecard as it was last computed, by the roots of the runs."""
    return {}


def _first(runs: tuple[RunInfo, ...]) -> Row | None:
    """Of the model that the Overview began with when it was last computed.

    Where a page begins is no reason to wait: a finished run changes it on the Overview only.
    """
    try:
        last = _last_rows().get(_roots()) or rows(runs)
    except (OSError, ValueError, KeyError):  # the page says what is damaged
        return None
    first = next(iter(last), None)
    return None if first is None or first.published else first


def _roots() -> tuple[str, ...]:
    return tuple(str(root) for root in runs_roots())


def leading_pair(runs: tuple[RunInfo, ...]) -> tuple[RunInfo, RunInfo] | None:
    """Baseline and candidate of the Overview's answer."""
    first = _first(runs)
    if first is None or first.hurt is None:
        return None
    a, b = (data.by_id(runs, run_id) for run_id in first.hurt.runs)
    return (a, b) if a is not None and b is not None else None


def leading_sweep(runs: tuple[RunInfo, ...]) -> str:
    """The id of the sweep that the Overview's Why speaks of; empty where no sweep tells."""
    first = _first(runs)
    told_by = first.why.runs if first is not None and first.why is not None else ()
    sweeps = {run_id.partition("/points/")[0] for run_id in told_by}
    return sweeps.pop() if len(sweeps) == 1 else ""
