"""What the app reads of run folders, and when it reads it again."""

import json
import os

import pytest

from bidir_core.runs.find import delete_run
from bidir_core.runs.layout import COMMITTED_RUNS
from bidir_ui.reading import data
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
