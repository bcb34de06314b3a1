"""Reading run folders: where they are, how they are found, and nothing broken takes a reader down."""

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bidir_core.common.errors import UserError
from bidir_core.runs.find import delete_run, find_run, list_runs, rename_run
from bidir_core.runs.layout import (
    evaluation_dir,
    new_run_folder,
    run_lock,
    runs_roots,
)
from bidir_core.runs.run import Run
from bidir_core.runs.writer import RunWriter
from tests.factory import make_run, scored

pytestmark = pytest.mark.usefixtures("own_runs")


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("regime", "checkpoint", "expected"),
    [
        ("causal", None, "stage1_vanilla_eval"),
        ("bidirectional:sink=1", None, "stage2_prefill_bidir_eval"),
        ("bidirectional:lambda=0", None, "stage1_vanilla_eval"),
        ("bidirectional", "x", "stage4_postft_eval"),
        ("causal", "x", "nonprefill_compare"),
        ("causal:hide=0", None, "stage2_prefill_bidir_eval"),
        ("causal:hide=0", "x", "stage4_postft_eval"),
    ],
)
def test_the_folder_of_an_evaluation(regime, checkpoint, expected):
    assert evaluation_dir(regime, checkpoint) == expected


def test_folder_names_are_utc_and_never_collide(tmp_path):
    from datetime import timedelta, timezone

    noon_in_tokyo = datetime(2026, 2, 15, 12, 0, 1, tzinfo=timezone(timedelta(hours=9)))
    names = [
        new_run_folder(tmp_path, "lab", name, now=noon_in_tokyo).name
        for name in (None, "final", None)
    ]
    assert names == ["20260215-030001", "20260215-030001-2_final", "20260215-030001-3"]
    assert Run(tmp_path / "lab" / names[1]).name == "final"
    assert Run(tmp_path / "lab" / names[1]).created == datetime(2026, 2, 15, 3, 0, 1, tzinfo=UTC)


@pytest.mark.parametrize("name", ["../x", "a/b", "", "-x", "x" * 99, "a b", "näh"])
def test_bad_names_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="run name"):
        new_run_folder(tmp_path, "lab", name)


def test_roots_are_a_path_list_and_the_committed_runs_stay(monkeypatch, tmp_path):
    monkeypatch.setenv("BIDIR_RUNS_DIR", f"{tmp_path / 'a'}{os.pathsep}{tmp_path / 'b'}")
    roots = runs_roots()
    assert roots[:2] == [tmp_path / "a", tmp_path / "b"]
    assert roots[-1] == ROOT / "runs"
    monkeypatch.delenv("BIDIR_RUNS_DIR")
    assert runs_roots() == [ROOT / "runs"]


def test_a_runs_folder_that_cannot_be_written_is_one_clear_sentence(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match=r"cannot write runs to .*--runs-dir"):
        RunWriter.create("lab", {}, root=blocked)


def test_a_broken_folder_never_takes_the_list_down(tmp_path):
    good = make_run(tmp_path, n_items=5)
    parent = tmp_path / "stage1_vanilla_eval"
    bad = {
        "20260101-000001": {"config.json": "{"},
        "20260101-000002": {"log.txt": "no config"},
        "20260101-000003": {"config.json": "[]"},
        "20260101-000004": {"config.json": "{}", "metrics.json": '{"tasks": []}'},
        "20260101-000005": {"config.json": "{}", "metrics.json": '{"tasks": {"piqa": 3}}'},
        "20260101-000006": {"config.json": "{}", "status.json": '{"state": "flying"}'},
        "20260101-000007": {"config.json": "{}", "items.parquet": "PAR1 cut"},
        "20260101-000008": {"config.json": '{"schema": 99}'},
        "20260101-000009": {"config.json": '{"config": "text"}', "status.json": "\x00"},
        "20260101-000021": {"config.json": "{}", "metrics.json": '{"n_items": "x"}'},
        "20260101-000022": {"config.json": "{}", "metrics.json": '{"n_items": 1e999}'},
        "20260101-000023": {"config.json": "{}", "status.json": '{"done": "x"}'},
        "20260101-000024": {"config.json": '{"config": []}'},
        "20260101-000025": {"config.json": "{}", "metrics.json": "[" * 200_000},
    }
    for name, files in bad.items():
        (parent / name).mkdir()
        for file, text in files.items():
            (parent / name / file).write_text(text)
    (parent / "20260101-000010").mkdir()  # empty: just being made
    (parent / "20260101-000011").write_text("not a folder")
    (parent / "notes").mkdir()
    (parent / ".deleted-20260101-000012").mkdir()
    runs = {run.path.name: run for run in list_runs([tmp_path])}
    assert set(runs) == {*bad, good.path.name}
    for name in bad:
        run = runs[name]
        assert run.state == "corrupt", name
        assert run.error, name
        assert "\n" not in run.error
        assert (run.model, run.regime, run.tasks, run.settings) == (
            "",
            "causal",
            [],
            {},
        ) or run.tasks
        with pytest.raises(UserError, match="cannot be resumed"):
            RunWriter.resume(run)
    assert runs[good.path.name].state == "done"
    assert list_runs([tmp_path / "nowhere"]) == []


def test_find_by_id_path_and_unique_name(tmp_path):
    a = make_run(tmp_path, n_items=5)
    assert find_run(a.id).path == a.path
    assert find_run(a.path.name).path == a.path
    assert find_run(f"runs/{a.id}").path == a.path
    assert find_run(a.path).id == a.id
    assert find_run(str(a.path)).path == a.path
    make_run(tmp_path, "lab", n_items=5, folder=tmp_path / "lab" / a.path.name)
    with pytest.raises(UserError, match="names 2 runs"):
        find_run(a.path.name)


@pytest.mark.parametrize(
    "ref",
    [
        "",
        "nope",
        "../../etc/passwd",
        "stage1_vanilla_eval/..",
        "..",
        "/",
        "a/b/points/../..",
        "x\0y",
    ],
)
def test_unknown_references_are_user_errors(ref):
    with pytest.raises(UserError, match="there is no run"):
        find_run(ref)


def test_points_of_a_sweep_are_runs(tmp_path):
    sweep = make_run(tmp_path, "lab", n_items=5)
    path = sweep.path / "points" / "bidirectional_lambda-0.5"
    make_run(tmp_path, "lab", n_items=5, folder=path, regime="bidirectional:lambda=0.5")
    point_id = f"{sweep.id}/points/bidirectional_lambda-0.5"
    assert find_run(point_id).id == point_id
    assert [p.id for p in sweep.points()] == [point_id]
    assert point_id not in [r.id for r in list_runs([tmp_path])]
    assert point_id in [r.id for r in list_runs([tmp_path], points=True)]


def test_rename_and_delete(tmp_path):
    run = make_run(tmp_path, n_items=5, name="old")
    new = rename_run(run, "new.name")
    assert new.name == "new.name"
    assert new.state == "done"
    assert not run.path.exists()
    with pytest.raises(UserError, match="run name"):
        rename_run(new, "../../x")
    bare = rename_run(new, None)
    assert bare.name is None
    delete_run(bare)
    assert list_runs([tmp_path]) == []
    assert os.listdir(tmp_path / "stage1_vanilla_eval") == []
    with pytest.raises(UserError, match="there is no run"):
        delete_run(bare.id)


def test_a_run_whose_process_was_killed_can_be_renamed_and_deleted(tmp_path):
    run = make_run(tmp_path, n_items=5, state="lost")
    (run.path / ".lock").touch()  # as a killed process leaves it
    before = sorted(os.listdir(run.path))
    assert Run(run.path).state == "lost"
    assert sorted(os.listdir(run.path)) == before  # looking leaves nothing
    delete_run(rename_run(run, "x"))
    assert os.listdir(tmp_path / "stage1_vanilla_eval") == []


def test_read_only_mode_refuses_changes(tmp_path, monkeypatch):
    done = make_run(tmp_path, n_items=6)
    monkeypatch.setenv("BIDIR_READ_ONLY", "1")
    for change in (
        delete_run,
        lambda run: rename_run(run, "x"),
        RunWriter.resume,
        lambda run: RunWriter.create("lab", {}),
    ):
        with pytest.raises(UserError, match="read-only"):
            change(done)
    assert done.path.exists()
    assert done.items().shape[0] == 6  # reading goes on


def _another_clock(status):
    status["pid_started"] -= 5


def _another_host(status):
    status.update(host="a-name-of-before", heartbeat=time.time() - 3600)


def _another_process(status):  # as seen from another container
    status.update(pid=2**22 + 1, pid_ticks=1)


@pytest.mark.parametrize("seen", [_another_clock, _another_host, _another_process])
def test_a_run_that_is_written_is_running_whatever_its_status_says(tmp_path, seen):
    rows = scored(10)
    with RunWriter.create("stage1_vanilla_eval", {}, root=tmp_path) as writer:
        writer.append(rows[:5])
        status = json.loads((writer.path / "status.json").read_text())
        seen(status)
        (writer.path / "status.json").write_text(json.dumps(status))
        assert Run(writer.path).state == "running"
        for change in (delete_run, lambda run: rename_run(run, "x")):
            with pytest.raises(UserError, match="it is running"):
                change(Run(writer.path))
        writer.append(rows)
        writer.finish()
    assert len(Run(writer.path).items()) == 10
    delete_run(Run(writer.path))
    assert os.listdir(tmp_path / "stage1_vanilla_eval") == []


def test_delete_and_rename_take_the_runs_lock(tmp_path):
    run = make_run(tmp_path, n_items=5)
    with run_lock(run.path):  # its state says done: the lock decides
        for change in (delete_run, lambda run: rename_run(run, "x")):
            with pytest.raises(UserError, match="it is running"):
                change(run)
    assert run.path.exists()
    renamed = rename_run(run, "x")
    assert not (renamed.path / ".lock").exists()
    delete_run(renamed)


def test_a_point_of_a_sweep_that_runs_is_not_deleted(tmp_path):
    sweep = make_run(tmp_path, "lab", n_items=5)
    point = make_run(tmp_path, "lab", n_items=5, folder=sweep.path / "points" / "causal")
    with run_lock(sweep.path), pytest.raises(UserError, match="it is running"):
        delete_run(point)
    delete_run(point)
