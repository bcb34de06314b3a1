"""What the app reads of run folders, and when it reads it again."""

import gc
import json
import os
from types import SimpleNamespace

import pytest

from bidir_core.runs import layout
from bidir_core.runs.find import delete_run
from bidir_core.runs.layout import COMMITTED_RUNS
from bidir_ui.reading import analysis, data, scorecards
from tests.app import pair
from tests.factory import make_run

pytestmark = pytest.mark.usefixtures("own_runs")


@pytest.fixture
def opened(monkeypatch):
    """The folders that are read, as they are."""
    seen = []
    really = data._read
    monkeypatch.setattr(
        data, "_read", lambda run, at: seen.append(str(run.path)) or really(run, at)
    )
    monkeypatch.setattr(data, "_index", {})
    return seen


def test_hundreds_of_folders_are_read_once(opened, tmp_path, monkeypatch):
    monkeypatch.setenv("BIDIR_RUNS_DIR", str(tmp_path))
    monkeypatch.setattr(data, "MOST_CHECKED", 100)
    files = {
        "config.json": json.dumps({"schema": 1, "kind": "eval", "config": {"model": "m"}}),
        "metrics.json": json.dumps({"schema": 1, "n_items": 3}),
    }
    for number in range(500):
        folder = tmp_path / "stage1_vanilla_eval" / f"20260101-000000-{number + 2}"
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / name).write_text(text)
    first = data.list_infos()
    assert len([info for info in first if info.path.startswith(str(tmp_path))]) == 500
    assert len(opened) == len(first)
    opened.clear()
    looks, really = [], os.stat
    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", lambda path, **more: looks.append(path) or really(path, **more))
        assert data.list_infos() == first
    assert opened == []
    assert len(looks) < 2 * len(first), "a look at each folder and at the files of some"
    (tmp_path / "stage1_vanilla_eval" / "20260101-000000-2" / "metrics.json").write_text("{")
    turns = -(-len(first) // data.MOST_CHECKED)
    assert sum(info.state == "corrupt" for _ in range(turns) for info in data.list_infos()) > 0


def test_what_changed_is_read_again_and_nothing_else(opened, tmp_path, monkeypatch):
    monkeypatch.setenv("BIDIR_RUNS_DIR", str(tmp_path))
    a, b = make_run(tmp_path, n_items=5), make_run(tmp_path, n_items=5, state="failed")
    busy = make_run(tmp_path, n_items=6, state="running")

    def read_again():
        opened.clear()
        infos = data.list_infos()
        again = [path for path in opened if not path.startswith(str(COMMITTED_RUNS))]
        return {info.path: info for info in infos if info.path.startswith(str(tmp_path))}, again

    assert set(read_again()[1]) == {str(run.path) for run in (a, b, busy)}
    assert read_again()[1] == [str(busy.path)]
    status = json.loads((b.path / "status.json").read_text())
    (b.path / "status.json").write_text(json.dumps({**status, "state": "cancelled"}))
    infos, again = read_again()
    assert set(again) == {str(b.path), str(busy.path)}
    assert infos[str(b.path)].state == "cancelled"
    (a.path / "items.parquet").write_bytes(b"PAR1")
    infos, _ = read_again()
    assert infos[str(a.path)].state == "corrupt"
    delete_run(a)
    infos, again = read_again()
    assert str(a.path) not in infos
    assert again == [str(busy.path)]


def test_what_a_server_reads_ahead_is_not_scored_again_for_its_first_reader(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "COMMITTED_RUNS", tmp_path)
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(True))
    a, b = pair(tmp_path)
    scorecards.look_ahead()
    assert frozen == [True], "no script's end looks through what stays"
    monkeypatch.setattr(scorecards, "scorecard", None)
    runs = data.list_infos()
    assert [row.hurt.runs for row in scorecards.rows(runs)] == [(a.id, b.id)]
    assert [run.id for run in scorecards.leading_pair(runs)] == [a.id, b.id]


def test_of_runs_with_the_same_items_one_is_asked_whether_it_holds_an_item(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "COMMITTED_RUNS", tmp_path)
    a, b = pair(tmp_path)
    others = [make_run(tmp_path, n_items=5, seed=number) for number in range(3)]
    third = make_run(tmp_path, n_items=40, seed=4)
    asked, really = [], data.record
    monkeypatch.setattr(data, "record", lambda run, item: asked.append(run.id) or really(run, item))
    runs = data.list_infos()
    chosen = SimpleNamespace(a=data.by_id(runs, a.id), b=data.by_id(runs, b.id))
    record = really(chosen.a, "piqa/3")
    page = SimpleNamespace(runs=runs, pair=chosen)
    answers = analysis.every_answer(page, "piqa/3", record)
    assert len(answers) == 3
    assert {a.id, b.id, third.id} < set(asked)
    assert len({run.id for run in others} & set(asked)) == 1
