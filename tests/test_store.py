"""Run folders: nothing recorded is lost, nothing broken takes a reader down."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from factory import make_item, make_reference, make_run, score_item, spread_items

from bidir_core import records, store
from bidir_core.atomic import write_json
from bidir_core.errors import UserError
from bidir_core.metrics import compute_metrics
from bidir_core.records import make_record
from bidir_core.run_layout import new_run_folder, runs_roots, stage_dir_for
from bidir_core.run_writer import RunWriter
from bidir_core.status import is_alive, this_process
from bidir_core.store import Run, delete_run, find_run, list_runs, rename_run

HERE = Path(__file__).parent


def scored(n: int, tasks=("piqa", "winogrande")) -> list[dict]:
    return [score_item(item, seed=1, accuracy=0.6, data_seed=0) for item in spread_items(n, tasks)]


@pytest.fixture(autouse=True)
def _own_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("BIDIR_RUNS_DIR", str(tmp_path))
    monkeypatch.delenv("BIDIR_READ_ONLY", raising=False)


# --- where runs go -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "options", "expected"),
    [
        ("eval", {}, "stage1_vanilla_eval"),
        ("eval", {"regime": "bidirectional:sink=1"}, "stage2_prefill_bidir_eval"),
        ("eval", {"regime": "bidirectional:lambda=0"}, "stage1_vanilla_eval"),
        ("eval", {"regime": "bidirectional", "checkpoint": "x"}, "stage4_postft_eval"),
        ("eval", {"checkpoint": "x"}, "nonprefill_compare"),
        ("finetune", {"objective": "3B"}, "stage3_finetune_prefill_bidir"),
        ("finetune", {"objective": "3A"}, "stage3a_finetune_leaky"),
        ("finetune", {"objective": "3C"}, "stage3c_finetune_causal"),
        ("finetune", {"objective": "distill"}, "stage3d_finetune_distil"),
        ("lab", {}, "lab"),
    ],
)
def test_stage_dir(command, options, expected):
    assert stage_dir_for(command, **options) == expected


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
    assert roots[-1] == HERE.parent / "runs"
    monkeypatch.delenv("BIDIR_RUNS_DIR")
    assert runs_roots() == [HERE.parent / "runs"]


def test_a_runs_folder_that_cannot_be_written_is_one_clear_sentence(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match=r"cannot write runs to .*--runs-dir"):
        RunWriter.create("lab", {}, root=blocked)


# --- writing and resuming ----------------------------------------------------------------------


def test_a_complete_run_reads_back_as_it_was_written(tmp_path):
    rows = scored(20)
    writer = RunWriter.create(
        "stage1_vanilla_eval", {"model": "m", "tasks": ["piqa", "winogrande"]}
    )
    writer.append(rows[10:])
    writer.append(rows[:10])
    writer.heartbeat(20, 20, rate=3.5, eta_seconds=0)
    metrics = writer.finish(cost={"seconds": 1.5, "device": "cpu"})
    run = Run(writer.path)
    assert run.state == "done"
    assert run.metrics == metrics
    assert metrics["cost"]["seconds"] == 1.5
    assert not (run.path / "items.jsonl").exists()
    assert not (run.path / ".lock").exists()
    got = pq.read_table(run.path / "items.parquet").to_pylist()
    assert [(r["task"], r["doc_id"]) for r in got] == [(r["task"], r["doc_id"]) for r in rows]
    for mine, theirs in zip(rows, got, strict=True):
        for name, value in mine.items():
            if name == "token_ll":
                assert all(np.allclose(a, b) for a, b in zip(value, theirs[name], strict=True))
            else:
                assert theirs[name] == (pytest.approx(value) if name in ("ll", "margin") else value)
        assert sum(theirs["token_ll"][0]) == pytest.approx(theirs["ll"][0], abs=1e-4)
    assert run.item("winogrande", 3)["doc_hash"] == rows[13]["doc_hash"]
    assert run.item("winogrande", 999) is None
    config = run.config
    assert config["schema"] == 1
    assert config["packages"]["numpy"] == np.__version__
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?", config["git_commit"])


def test_items_load_light_by_default_and_heavy_on_demand(tmp_path):
    run = make_run(tmp_path, n_items=30)
    assert set(run.items().columns) == set(store.LIGHT_FIELDS)
    assert list(run.items(["task", "contexts"]).columns) == ["task", "contexts"]
    with pytest.raises(ValueError, match="not fields"):
        run.items(["nonsense"])


def test_compact_runs_keep_numbers_and_drop_texts(tmp_path):
    full = make_run(tmp_path, n_items=30)
    compact = make_run(tmp_path, n_items=30, texts=False)
    row = compact.item("piqa", 0)
    assert row["contexts"] is None
    assert row["token_ll"] is None
    assert row["ll"] == full.item("piqa", 0)["ll"]
    assert compact.metrics["tasks"] == full.metrics["tasks"]


def test_a_table_of_an_older_version_reads_with_nulls(tmp_path):
    run = make_run(tmp_path, n_items=10)
    table = pq.read_table(run.path / "items.parquet").drop_columns(["prompt_group"])
    pq.write_table(table, run.path / "items.parquet")
    assert run.items()["prompt_group"].isna().all()
    assert run.item("piqa", 0)["prompt_group"] is None


def test_a_torn_last_line_is_ignored_and_cut_off_on_resume(tmp_path):
    rows = scored(10)
    writer = RunWriter.create("lab", {"tasks": ["piqa", "winogrande"]})
    writer.append(rows[:6])
    writer.fail("stopped")
    file = writer.path / "items.jsonl"
    whole = file.read_bytes()
    for torn in (records.to_line(rows[6])[:37], records.to_line(rows[6])[:-1], b"\x00" * 50):
        file.write_bytes(whole + torn)
        assert len(Run(writer.path).items()) == 6
    again = RunWriter.resume(writer.path)
    assert file.read_bytes() == whole
    assert len(again.recorded) == 6
    again.append(rows)  # the six are not written twice
    again.append(rows[:2])
    assert len(file.read_bytes().splitlines()) == 10
    again.finish()
    assert Run(again.path).metrics["n_items"] == 10


_CHILD = """
import sys, time
sys.path[:0] = [{here!r}, {root!r}]
from factory import score_item, spread_items
from bidir_core.run_writer import RunWriter
from bidir_core.store import Run
rows = [score_item(i, seed=1, accuracy=.6, data_seed=0) for i in spread_items(400, ["piqa"])]
writer = RunWriter.resume(sys.argv[1])
print("ready", len(writer.recorded), flush=True)
for row in rows:
    if (row["task"], row["doc_id"]) not in writer.recorded:
        writer.append([row])
        print(row["doc_id"], flush=True)
        time.sleep(0.001)
print("end", writer.finish()["n_items"], flush=True)
"""


def test_sigkill_loses_nothing_and_the_run_shows_as_lost(tmp_path):
    first = RunWriter.create("lab", {"tasks": ["piqa"]})
    first.close()
    code = _CHILD.format(here=str(HERE), root=str(HERE.parent))
    said: list[int] = []
    for kill_after in (40, 60):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(first.path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline().split() == ["ready", str(len(said))]
        assert Run(first.path).state == "running"
        with pytest.raises(UserError, match="another process"):
            RunWriter.resume(first.path)
        with pytest.raises(UserError, match="cancel it first"):
            delete_run(Run(first.path))
        said += [int(child.stdout.readline()) for _ in range(kill_after)]
        os.kill(child.pid, signal.SIGKILL)
        said += [int(line) for line in child.stdout.read().split()]
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert Run(first.path).state == "lost"  # a zombie: dead, and not yet waited for
        child.wait()
        assert Run(first.path).state == "lost"
        assert Run(first.path).is_partial
        on_disk = Run(first.path).items()["doc_id"].tolist()
        assert on_disk[: len(said)] == said  # whatever was said to be recorded is there
        assert len(on_disk) <= len(said) + 1
        said = on_disk
    done = subprocess.run(
        [sys.executable, "-c", code, str(first.path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "end 400"
    assert sorted(Run(first.path).items()["doc_id"]) == list(range(400))


def test_exceptions_leave_an_honest_state(tmp_path):
    with pytest.raises(RuntimeError), RunWriter.create("lab", {}) as writer:
        raise RuntimeError("CUDA\nout of   memory")
    run = Run(writer.path)
    assert (run.state, run.error) == ("failed", "CUDA out of memory")
    again = RunWriter.resume(run)
    assert Run(run.path).state == "running"
    assert Run(run.path).error is None
    with pytest.raises(KeyboardInterrupt), again:
        raise KeyboardInterrupt
    assert Run(run.path).state == "cancelled"


def test_a_full_disk_leaves_a_resumable_run(tmp_path):
    rows = scored(40)
    writer = RunWriter.create("lab", {})
    writer.append(rows[:5])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    in_a_line = (writer.path / "items.jsonl").stat().st_size + 100

    def fill() -> None:
        with writer:
            resource.setrlimit(resource.RLIMIT_FSIZE, (in_a_line, hard))
            try:
                writer.append(rows[5:])
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with pytest.raises(OSError, match="too large"):
        fill()
    run = Run(writer.path)
    assert run.state == "failed"
    assert len(run.items()) == 5
    again = RunWriter.resume(run)
    again.append(rows)
    assert again.finish()["n_items"] == 40


def test_a_complete_run_is_not_resumed(tmp_path):
    run = make_run(tmp_path, n_items=5)
    with pytest.raises(UserError, match="already complete"):
        RunWriter.resume(run)


def test_complete_exactly_when_metrics_exist(tmp_path):
    run = make_run(tmp_path, n_items=10)
    (run.path / "status.json").write_text(json.dumps({"state": "running", **this_process()}))
    assert Run(run.path).state == "done"
    (run.path / "metrics.json").unlink()
    assert Run(run.path).state == "running"
    (run.path / "status.json").unlink()
    assert Run(run.path).state == "partial"


def test_failed_writes_leave_the_old_file(tmp_path):
    file = tmp_path / "x.json"
    write_json(file, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(file, {"a": math.nan})
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_bugs_in_records_are_loud():
    with pytest.raises(ValueError, match="fields"):
        records.to_line({"task": "x", "surprise": 1})
    with pytest.raises(ValueError, match="JSON"):
        records.to_line({"task": "x", "ll": [math.nan]})


def test_odd_texts_survive(tmp_path):
    item = make_item("piqa", 0, 0)
    odd = "a\nb\u2028c \x00 \u202eright-to-left \U0001f600 </script> " + "x" * 100_000
    item |= {"contexts": [odd], "continuations": [" \u200b", " ok"]}
    item["n_continuation_tokens"] = [1, 1]
    run = make_run(tmp_path, items=[item], tasks=["piqa"])
    assert run.item("piqa", 0)["contexts"] == [odd]
    partial = make_run(tmp_path, items=[item] * 2, tasks=["piqa"], state="failed")
    assert partial.item("piqa", 0)["contexts"] == [odd]


# --- states and processes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "state", ["queued", "running", "done", "failed", "cancelled", "lost", "partial", "corrupt"]
)
def test_states(tmp_path, state):
    run = make_run(tmp_path, n_items=10, state=state)
    assert run.state == state
    assert (run.error is not None) == (state in ("failed", "corrupt"))
    assert run.is_partial == (state in ("running", "failed", "cancelled", "lost", "partial"))


def test_a_pid_alone_does_not_prove_life():
    me = this_process()
    assert is_alive(me)
    assert not is_alive({**me, "pid_started": me["pid_started"] - 60})
    assert not is_alive({**me, "pid": 2**30})
    assert not is_alive({})
    elsewhere = {**me, "host": "another-machine"}
    assert is_alive({**elsewhere, "heartbeat": time.time()})
    assert not is_alive({**elsewhere, "heartbeat": time.time() - 600})


# --- listing and finding -----------------------------------------------------------------------


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
    }
    for name, files in bad.items():
        (parent / name).mkdir()
        for file, text in files.items():
            (parent / name / file).write_text(text)
    (parent / "20260101-000010").mkdir()  # empty: just being made
    (parent / "20260101-000011").write_text("not a folder")
    (parent / "notes").mkdir()
    (parent / ".deleted-20260101-000012").mkdir()
    found = {run.path.name: run for run in list_runs([tmp_path])}
    assert set(found) == {*bad, good.path.name}
    for name in bad:
        run = found[name]
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
    assert found[good.path.name].state == "done"
    assert list_runs([tmp_path / "nowhere"]) == []


def test_a_damaged_table_is_a_sentence_for_the_reader(tmp_path):
    run = make_run(tmp_path, n_items=50)
    data = bytearray((run.path / "items.parquet").read_bytes())
    data[-60:-10] = b"\xff" * 50
    (run.path / "items.parquet").write_bytes(bytes(data))
    with pytest.raises(UserError, match="cannot be read"):
        run.items()
    with pytest.raises(UserError, match="cannot be read"):
        run.item("piqa", 0)


def test_find_by_id_path_and_unique_name(tmp_path):
    a = make_run(tmp_path, n_items=5)
    assert find_run(a.id).path == a.path
    assert find_run(a.path.name).path == a.path
    assert find_run(f"runs/{a.id}").path == a.path
    assert find_run(a.path).id == a.id
    assert find_run(str(a.path)).path == a.path
    with pytest.raises(UserError, match="there is no run"):
        find_run(str(a.path), allow_path=False)
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
        "x\x00y",
    ],
)
def test_unknown_references_are_user_errors(ref):
    with pytest.raises(UserError, match="there is no run"):
        find_run(ref, allow_path=False)


def test_points_of_a_sweep_are_runs(tmp_path):
    sweep = make_run(tmp_path, "lab", n_items=5)
    path = sweep.path / "points" / "bidirectional_lambda-0.5"
    make_run(tmp_path, "lab", n_items=5, folder=path, regime="bidirectional:lambda=0.5")
    point_id = f"{sweep.id}/points/bidirectional_lambda-0.5"
    assert find_run(point_id).id == point_id
    assert [p.id for p in sweep.points()] == [point_id]
    assert point_id not in [r.id for r in list_runs([tmp_path])]
    assert point_id in [r.id for r in list_runs([tmp_path], points=True)]


def test_reference_runs_are_numbers_only(tmp_path):
    run = make_reference(tmp_path, tasks={"piqa": 0.788, "arc_easy": 0.814}, source="a paper")
    assert run.is_reference
    assert run.state == "reference"
    assert not run.has_items
    assert run.metrics["tasks"]["piqa"]["acc"] == 0.788
    assert run.config["source"] == "a paper"


# --- changing ----------------------------------------------------------------------------------


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


def test_running_runs_and_read_only_mode_refuse_changes(tmp_path, monkeypatch):
    busy, done = make_run(tmp_path, n_items=6, state="running"), make_run(tmp_path, n_items=6)
    for change in (delete_run, lambda run: rename_run(run, "x")):
        with pytest.raises(UserError, match="it is running"):
            change(busy)
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


# --- records and metrics -----------------------------------------------------------------------


def record(**changes):
    base = {
        "task": "t", "doc_id": 0, "doc_hash": "h", "gold": 1, "contexts": ["c"],
        "continuations": [" a much longer choice", " bb"], "n_prefix_tokens": [1],
        "n_continuation_tokens": [4, 1], "ll": [-8.0, -4.0],
    }  # fmt: skip
    return make_record(**{**base, **changes})


def test_predictions_follow_lm_eval():
    row = record()
    # acc: argmax of ll. acc_norm: per character without the leading space: -8/20 against -4/2.
    assert (row["pred"], row["correct"], row["margin"]) == (1, True, 4.0)
    assert (row["pred_norm"], row["correct_norm"]) == (0, False)
    three = record(
        continuations=[" a", " b", " c"], ll=[-3.0, -2.0, -2.0], n_continuation_tokens=[1, 1, 1]
    )
    assert three["pred"] == 1  # the first of equals, as numpy's argmax
    assert three["margin"] == 0.0


def test_winogrande_has_no_acc_norm():
    row = record(contexts=["c one", "c two"], continuations=[" same"] * 2)
    assert row["pred_norm"] is None
    assert row["correct_norm"] is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_is_an_item_error_never_an_argmax(bad):
    row = record(ll=[bad, -4.0])
    assert row["ll"] is None
    assert row["pred"] is None
    assert row["correct"] is False
    assert "choice 0" in row["error"]
    records.to_line(row)


def test_stored_numbers_and_stored_prediction_cannot_disagree():
    close = -100.0 - 1e-9  # the same number in float32
    row = record(ll=[close, -100.0])
    assert row["pred"] == int(np.argmax(np.asarray(row["ll"], dtype=np.float32)))


def test_metrics_by_hand():
    rows = [
        record(task="a", doc_id=0),
        record(task="a", doc_id=1, ll=[-1.0, -4.0]),
        record(task="a", doc_id=2, ll=[math.nan, -4.0]),
        record(
            task="a", doc_id=3, continuations=[" a", " b", " c", " d"], n_continuation_tokens=[1] * 4,
            ll=[-2.0, -1.0, -2.0, -2.0],
        ),
        record(task="winogrande", contexts=["x", "y"], continuations=[" same"] * 2),
    ]  # fmt: skip
    found = compute_metrics(rows)
    assert (found["n_items"], found["n_scored"], found["n_errors"]) == (5, 4, 1)
    a = found["tasks"]["a"]
    assert a["n"] == 4
    assert a["acc"] == 0.5  # the error item counts as wrong
    assert a["acc_stderr"] == pytest.approx(math.sqrt(0.25 / 3))
    assert a["chance"] == pytest.approx((3 * 0.5 + 0.25) / 4)
    soft = [1 / (1 + math.exp(-4)), 1 / (1 + math.exp(3)), 1 / (1 + 3 * math.exp(-1))]
    assert a["gold_prob"] == pytest.approx(np.mean(soft))
    wino = found["tasks"]["winogrande"]
    assert wino["acc_norm"] is None
    assert wino["acc_norm_stderr"] is None
    assert wino["acc_stderr"] is None  # one item
    assert found["macro"]["acc"] == pytest.approx(0.75)
    assert found["macro"]["acc_norm"] == pytest.approx((a["acc_norm"] + 1.0) / 2)
    assert found["macro"]["chance"] == pytest.approx((a["chance"] + 0.5) / 2)


def test_chance_and_scores_do_not_need_texts():
    rows = [record(doc_id=i, ll=[math.nan, 0.0] if i == 0 else [-8.0, -4.0]) for i in range(4)]
    bare = [
        record(doc_id=i, compact=True, ll=row["ll"], error=row["error"])
        for i, row in enumerate(rows)
    ]
    assert compute_metrics(bare) == compute_metrics(rows)


def test_a_task_of_errors_only_has_numbers_and_no_crash():
    found = compute_metrics([record(ll=[math.nan, 1.0])])
    assert found["tasks"]["t"]["acc"] == 0
    assert found["tasks"]["t"]["gold_prob"] is None
    json.dumps(found, allow_nan=False)


def test_ten_thousand_items_load_fast_and_compact_runs_are_small(tmp_path):
    run = make_run(tmp_path, n_items=10_000, texts=False)
    assert (run.path / "items.parquet").stat().st_size < 700_000
    started = time.perf_counter()
    run.items()
    run.item("hellaswag", 1500)
    assert time.perf_counter() - started < 4.0
