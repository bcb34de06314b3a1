"""Where a run's results are read: the page, and the label of its link."""

from __future__ import annotations

from collections.abc import Sequence

from bidir_core.analyse import selection
from bidir_core.data.items import name_of
from bidir_ui.kit import url
from bidir_ui.reading import data
from bidir_ui.reading.data import RunInfo

WORDS = {
    "compare": "Compare with its baseline",
    "item": "Read it on the item",
    "masks": "See the observed attention",
    "lab": "Open in Lab",
    "run": "Open the run",
}


def results(info: RunInfo, runs: Sequence[RunInfo]) -> tuple[str, dict[str, str]]:
    """Page and URL: an explanation on its item, observed attention on Masks, a sweep in the Lab, an
    evaluation beside its baseline, anything else on the run's own page."""
    if info.kind == "attend" and info.is_done:
        return "masks", url.params(show="observed", attend=info.id)
    if info.is_sweep:
        return "lab", url.params(sweep=info.id)
    if info.kind == "why" and info.is_done and (explained := _explained(info, runs)):
        return "item", explained
    baseline = selection.baseline_of(runs, info, data.by_id(tuple(runs), url.get("a")))
    if baseline is not None and info.is_evaluation:
        query = url.params(a=baseline.id, b=info.id, intersect="" if info.is_done else "yes")
        if info.is_done:  # the URL may have it from a pair before
            query.pop("intersect", None)
        return "compare", query
    return "run", url.params(id=info.id)


def _explained(info: RunInfo, runs: Sequence[RunInfo]) -> dict[str, str]:
    """The explained item beside the runs whose answers it explains; empty where none is here."""
    settings = data.run_of(info).settings
    same = (info.model, info.checkpoint, info.regime)
    for run in runs:
        if run.can_pair and not run.is_point and (run.model, run.checkpoint, run.regime) == same:
            baseline = selection.baseline_of(runs, run, None)
            if baseline is not None:
                item = f"{name_of(str(settings.get('task')))}/{settings.get('doc_id')}"
                metric = str(settings.get("metric") or "acc")
                query = url.params(a=baseline.id, b=run.id, item=item)
                return query | ({"metric": metric} if metric != "acc" else {})
    return {}
