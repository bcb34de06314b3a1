"""Five states for every page: loading, empty, partial or stale, error, ready.

The table below says, for each page and state, what is on disk, the address, and words the page
must show. A page without a row for each state fails the first test.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest
from streamlit.delta_generator import DeltaGenerator

from bidir_core import jobs
from bidir_ui import shell
from tests.app import STAGE2, fake_job, open_page, pair, words
from tests.factory import make_run, tear
from tests.lab_factory import make_sweep

STATES = ("empty", "partial", "error", "ready")  # loading is the same on all pages, and below
Disk = Callable[[Path], dict[str, str]]  # writes run folders; the query that shows them


class Case(NamedTuple):
    disk: Disk
    says: str
    query: Mapping[str, str] = MappingProxyType({})


def nothing(root: Path) -> dict[str, str]:
    return {}


def complete(root: Path) -> dict[str, str]:
    a, b = pair(root)
    return {"a": a.id, "b": b.id, "id": b.id}


def half(root: Path) -> dict[str, str]:
    """The candidate stopped half way."""
    a = make_run(root, n_items=40, accuracy=0.7)
    b = make_run(root, STAGE2, n_items=40, regime="bidirectional", state="failed", seed=1)
    return {"a": a.id, "b": b.id, "id": b.id, "intersect": "yes"}


def torn(root: Path) -> dict[str, str]:
    """The candidate's items are damaged."""
    a, b = pair(root)
    tear(b)
    return {"a": a.id, "b": b.id}


def corrupt(root: Path) -> dict[str, str]:
    make_run(root, STAGE2, n_items=10, regime="bidirectional", state="corrupt")
    return {}


def stalled(root: Path) -> dict[str, str]:
    """A queue that nobody works on, and a job that is gone."""
    job = fake_job(root, ("eval", "--model", "m"), number=1)
    gone = {"pid": 2**22 + 1, "pid_started": 1.0}
    jobs.save(replace(job, id="20260101-000002-abcdef", stored_state="running", process=gone))
    return {}


def sweep(state: str) -> Disk:
    def make(root: Path) -> dict[str, str]:
        make_sweep(root, ["bidirectional:sink=1"], n_items=40, state=state)
        return {}

    return make


ITEM, SWEPT = {"item": "piqa/3"}, sweep("done")
TABLE: dict[str, dict[str, Case]] = {
    "overview": {
        "empty": Case(nothing, "No runs yet"),
        "partial": Case(half, "20 of 40 items so far"),
        "error": Case(torn, "items.parquet is not what was written"),
        "ready": Case(complete, "Points against causal"),
    },
    "runs": {
        "empty": Case(nothing, "No runs yet"),
        "partial": Case(half, "stopped with an error"),
        "error": Case(corrupt, "The folder cannot be read"),
        "ready": Case(complete, "2 of 2 runs"),
    },
    "run": {
        "empty": Case(nothing, "No runs yet"),
        "partial": Case(half, "stopped with an error"),
        "error": Case(complete, "Run not found", {"id": "lab/19990101-000000"}),
        "ready": Case(complete, "Settings that are not the defaults"),
    },
    "compare": {
        "empty": Case(nothing, "No runs yet"),
        "partial": Case(half, "20 of 40 items so far"),
        "error": Case(torn, "items.parquet is not what was written"),
        "ready": Case(complete, "Right and wrong, task by task"),
    },
    "flips": {
        "empty": Case(nothing, "No runs yet"),
        "partial": Case(half, "20 of 40 items so far"),
        "error": Case(torn, "items.parquet is not what was written"),
        "ready": Case(complete, "of 40 paired items"),
    },
    "item": {
        "empty": Case(nothing, "No runs yet", ITEM),
        "partial": Case(half, "20 of 40 items so far", {"item": "hellaswag/1"}),
        "error": Case(complete, "Item not found", {"item": "piqa/99999"}),
        "ready": Case(complete, "right answer", ITEM),
    },
    "masks": {
        "empty": Case(nothing, "Nothing to draw", {"prompt": " ", "cont": " "}),
        "partial": Case(half, "the prefix", {"item": "piqa/1"}),  # a mask needs no score
        "error": Case(nothing, "unknown regime", {"regime": "sideways"}),
        "ready": Case(nothing, "look-ahead cells"),
    },
    "lab": {
        "empty": Case(nothing, "No sweep yet"),
        "partial": Case(sweep("failed"), "Partial: failed"),
        "error": Case(SWEPT, "Sweep not found", {"sweep": "lab/19990101-000000"}),
        "ready": Case(SWEPT, "Every point"),
    },
    "launch": {
        "empty": Case(nothing, "No jobs yet"),
        "partial": Case(stalled, "stands still"),
        "error": Case(nothing, "Not ready to start", {"f.limit": "x"}),
        "ready": Case(complete, "How this is known"),
    },
    "report": {
        "empty": Case(nothing, "No runs yet"),
        "partial": Case(half, "runs of this model are not in the report"),
        "error": Case(complete, "not found", {"runs": "stage1_vanilla_eval/19990101-000000"}),
        "ready": Case(complete, "2 runs"),
    },
}
PAGES = [spec for spec in shell.PAGES if (shell.ROOT / spec.path).exists()]


def test_every_page_has_every_state_in_the_table():
    assert {spec.key for spec in PAGES} == {*TABLE, "playground"}  # that one's have a file of tests
    assert all(set(cases) == set(STATES) for cases in TABLE.values())


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("key", TABLE)
def test_a_page_in_each_state(root, key, state):
    case = TABLE[key][state]
    query = case.disk(root) | dict(case.query)
    app = open_page("" if key == "overview" else shell.path(key), **query)
    text = words(app)
    assert case.says in text
    if case.says == "No runs yet":
        assert "python -m bidir_core eval" in text
    if case.disk is half and "intersect" in app.query_params and key in ("flips", "compare"):
        assert "Intersected" in text
    if state == "ready":
        assert "could not be read" not in text
        assert "not found" not in text


@pytest.mark.parametrize("key", ["overview", "lab"])
def test_loading_says_so(root, key, monkeypatch):
    """While the run folders are read, which can take seconds on a network disk, and no longer."""
    seen: list[str] = []
    list_infos, html = shell.data.list_infos, DeltaGenerator.html

    def drawn(place, body, **options):
        seen.append(body)
        return html(place, body, **options)

    def slow():
        seen.append("begins")
        time.sleep(0.6)
        seen.append("ends")
        return list_infos()

    monkeypatch.setattr(shell.data, "list_infos", slow)
    monkeypatch.setattr(DeltaGenerator, "html", drawn)
    app = open_page("" if key == "overview" else shell.path(key))
    assert not app.exception
    begun, ended = seen.index("begins"), seen.index("ends")
    assert any("Reading run folders" in body and "height: " in body for body in seen[begun:ended])
    assert "Reading run folders" not in words(app)
