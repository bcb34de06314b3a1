"""What kills leave behind goes; what never ends is given up."""

import io
import json
import os
import threading
import time

import pytest

from bidir_core.common.files import write_json
from bidir_core.common.progress import time_limit
from bidir_core.jobs.playground_server import MAX_WAITING, Inbox
from bidir_core.report.made_folder import MadeFolder
from bidir_core.runs.find import delete_run
from bidir_core.runs.layout import run_lock
from bidir_core.runs.lm_eval_import import import_results
from bidir_core.runs.writer import RunWriter
from tests.factory import make_run

pytestmark = pytest.mark.usefixtures("own_runs")


def test_a_resumed_run_removes_what_killed_writers_left(tmp_path):
    sweep = make_run(tmp_path, "lab", n_items=5, state="lost")
    point = make_run(tmp_path, "lab", n_items=5, folder=sweep.path / "points" / "causal")
    busy = make_run(tmp_path, "lab", n_items=5, folder=sweep.path / "points" / "busy")
    for path in (sweep.path / ".texts.parquet.77.tmp", point.path / ".status.json.77.tmp"):
        path.write_text("half")
    (point.path / ".lock").touch()
    with run_lock(busy.path), RunWriter.resume(sweep.path):
        assert [p.name for p in sweep.path.iterdir() if p.name[0] == "."] == [".lock"]
        assert [p.name for p in point.path.iterdir() if p.name[0] == "."] == []
        assert (busy.path / ".lock").exists()


def test_deleting_a_run_removes_old_left_overs_of_deletes_and_no_young_ones(tmp_path):
    run = make_run(tmp_path, n_items=5)
    old, young = (run.path.with_name(f".deleted-2020010{n}-000000") for n in (1, 2))
    for path in (old, young):
        path.mkdir()
        (path / "items.jsonl").write_text("")
    os.utime(old, (time.time() - 7200,) * 2)
    delete_run(run)
    assert [path.name for path in old.parent.iterdir()] == [young.name]


def test_writing_again_removes_what_was_left_long_ago(copy, tmp_path):
    """By a killed import, a killed report of several files, and a file half written."""
    stage = tmp_path / "stage1_vanilla_eval"
    left = [
        stage / ".importing-77",
        tmp_path / ".paper.being-written-x",
        tmp_path / ".x.json.77.tmp",
    ]
    for path in left:
        path.mkdir(parents=True)
        os.utime(path, (time.time() - 7200,) * 2)
    young = stage / ".importing-78"
    young.mkdir()
    import_results(copy, runs_dir=tmp_path)
    MadeFolder("--paper", "report").make(tmp_path / "paper", "", lambda folder: None)
    write_json(tmp_path / "x.json", {})
    assert [path for path in left if path.exists()] == []
    assert young.exists()


def test_no_alarm_is_left_behind():
    """What is given up: a pattern in models/test_adapters.py, a template in data/test_chat.py."""
    with time_limit(0.05, "nothing"):
        pass
    time.sleep(0.1)


def test_the_playground_refuses_what_it_cannot_keep():
    lines = "".join(json.dumps({"op": "generate", "id": n}) + "\n" for n in range(MAX_WAITING + 5))
    refused, ended = [], threading.Event()
    inbox = Inbox(io.StringIO(lines), ended.set, refused.append)
    assert ended.wait(300)
    assert inbox.requests.qsize() == MAX_WAITING
    assert refused == [str(n) for n in range(MAX_WAITING, MAX_WAITING + 5)]
