"""Writing run folders: nothing recorded is lost, and the state left behind is honest."""

import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from bidir_core.common.errors import UserError
from bidir_core.common.files import write_json
from bidir_core.common.process import is_alive, this_process
from bidir_core.runs import records
from bidir_core.runs.find import delete_run
from bidir_core.runs.records import LIGHT_FIELDS
from bidir_core.runs.run import Run
from bidir_core.runs.writer import RunWriter
from tests.factory import make_item, make_run, scored, unsealed

pytestmark = pytest.mark.usefixtures("own_runs")


ROOT = str(Path(__file__).parents[2])


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
    assert set(run.items().columns) == set(LIGHT_FIELDS)
    assert list(run.items(["task", "contexts"]).columns) == ["task", "contexts"]
    with pytest.raises(ValueError, match="not fields"):
        run.items(["nonsense"])
    compact = make_run(tmp_path, n_items=30, texts=False)
    row = compact.item("piqa", 0)
    assert (row["contexts"], row["token_ll"]) == (None, None)
    assert row["ll"] == run.item("piqa", 0)["ll"]
    for task, row in run.metrics["tasks"].items():
        del row["acc_bytes"]  # asks for the texts
        assert compact.metrics["tasks"][task] == row


def test_a_table_of_an_older_version_reads_with_nulls(tmp_path):
    run = unsealed(make_run(tmp_path, n_items=10))
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
sys.path.insert(0, {root!r})
from tests.factory import score_item, spread_items
from bidir_core.runs.writer import RunWriter
from bidir_core.runs.run import Run
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
    code = _CHILD.format(root=ROOT)
    reported: list[int] = []
    for kill_after in (40, 60):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(first.path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline().split() == ["ready", str(len(reported))]
        assert Run(first.path).state == "running"
        with pytest.raises(UserError, match="another process"):
            RunWriter.resume(first.path)
        with pytest.raises(UserError, match="cancel it first"):
            delete_run(Run(first.path))
        reported += [int(child.stdout.readline()) for _ in range(kill_after)]
        os.kill(child.pid, signal.SIGKILL)
        reported += [int(line) for line in child.stdout.read().split()]
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert Run(first.path).state == "lost"  # a zombie: dead, and not yet waited for
        child.wait()
        assert Run(first.path).state == "lost"
        on_disk = Run(first.path).items()["doc_id"].tolist()
        assert on_disk[: len(reported)] == reported  # whatever was said to be recorded is there
        assert len(on_disk) <= len(reported) + 1
        reported = on_disk
    last_child = subprocess.run(
        [sys.executable, "-c", code, str(first.path)], capture_output=True, text=True, check=True
    )
    assert last_child.stdout.splitlines()[-1] == "end 400"
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


def test_complete_exactly_when_metrics_exist(tmp_path):
    run = make_run(tmp_path, n_items=10)
    with pytest.raises(UserError, match="already complete"):
        RunWriter.resume(run)
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


@pytest.mark.parametrize(
    "state", ["queued", "running", "done", "failed", "cancelled", "lost", "partial", "corrupt"]
)
def test_states(tmp_path, state):
    run = make_run(tmp_path, n_items=10, state=state)
    assert run.state == state
    assert (run.error is not None) == (state in ("failed", "corrupt"))


def test_a_pid_alone_does_not_prove_life():
    me = this_process()
    assert is_alive(me)
    assert not is_alive({**me, "pid_ticks": me["pid_ticks"] - 1})
    assert is_alive({**me, "pid_started": me["pid_started"] - 60})  # the clock was set
    old = {name: value for name, value in me.items() if name != "pid_ticks"}
    assert is_alive(old)
    assert not is_alive({**old, "pid_started": me["pid_started"] - 60})
    assert not is_alive({**me, "pid": 2**30})
    assert not is_alive({})
    elsewhere = {**me, "host": "another-machine"}
    assert is_alive({**elsewhere, "heartbeat": time.time()})
    assert not is_alive({**elsewhere, "heartbeat": time.time() - 600})
