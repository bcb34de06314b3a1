"""Jobs with real detached processes: once, in turn, cancelled, killed, resumed, read-only."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from bidir_core import jobs
from bidir_core.cli import main
from bidir_core.common.errors import UserError
from bidir_core.common.files import write_json
from bidir_core.common.process import is_alive
from bidir_core.common.progress import PHASES
from bidir_core.jobs import Job
from bidir_core.runs.run import Run
from tests.factory import until


@pytest.fixture
def quiet(runs_dir):
    """An empty runs folder for jobs; whatever still runs is ended afterwards."""
    yield runs_dir
    for job in jobs.list_jobs():
        if is_alive(job.process):
            os.killpg(job.process["pid"], signal.SIGKILL)


def words(tiny: Path, items: Path, *more: str) -> list[str]:
    return ["eval", "--model", str(tiny), "--tasks", str(items), "--device", "cpu", *more]


def wait(job: Job, *states: str) -> Job:
    def reached() -> Job | None:
        seen = jobs.find_job(job.id)
        assert seen.state in states or seen.is_active, (seen.state, seen.error, jobs.log_tail(seen))
        return seen if seen.state in states else None

    return until(reached, explain=lambda: jobs.log_tail(job))


def scored(job: Job, least: int = 1) -> Run:
    """Its run, once that many items are on disk."""

    def look() -> Run | None:
        path = jobs.find_job(job.id).run_path
        if path is None:
            return None
        run = Run(path)
        return run if (run.status.get("done") or 0) >= least and run.has_items else None

    return until(look, explain=lambda: jobs.log_tail(job))


def no_worker(device: str = "cpu") -> bool:
    return not jobs.worker_lives(device)


def test_one_key_starts_one_job_and_jobs_take_turns_whatever_becomes_of_them(
    quiet, tiny_folder, own_items
):
    line = words(tiny_folder, own_items, "--limit", "20")
    with ThreadPoolExecutor(4) as clicks:
        started = [*clicks.map(lambda _: jobs.submit(line, "k"), range(4))]
    first = started[0]
    assert {job.id for job in started} == {first.id}
    # The same line from another tab, while it is under way: still the one job.
    assert jobs.submit(line, "another key").id == first.id
    bad = jobs.submit(["eval", "--device", "cpu"], "bad", estimate={"seconds": 3})
    assert bad.state == "queued"
    # The worker takes a second to import what it needs; who looks meanwhile is not alarmed.
    while jobs.find_job(first.id).state == "queued":
        assert jobs.stalled(jobs.list_jobs()) == []

    first, bad = wait(first, "done"), wait(bad, "failed")
    assert len(jobs.list_jobs()) == 2
    assert first.started < first.finished <= bad.started < bad.finished
    assert bad.estimate == {"seconds": 3}
    assert "--model is missing" in bad.error
    assert "Traceback" not in jobs.log_tail(bad)
    assert bad.can_resume
    run = Run(first.run_path)
    assert (run.state, run.metrics["n_items"]) == ("done", 20)
    assert jobs.log_tail(first).splitlines()[0] == f"$ {first.line}"
    until(no_worker)
    # A detached process of its own session, not our child's child in our group.
    assert jobs.submit(line, "k").id == first.id, "a key is remembered after the job has ended"
    assert jobs.idempotency_key(line, jobs.list_jobs()) != jobs.idempotency_key(line, [])


def test_cancel_leaves_a_run_that_resume_goes_on_with(quiet, tiny_folder, own_items, pretended):
    line = words(tiny_folder, own_items)
    job = jobs.submit(line, "a")
    waiting = jobs.submit([*line, "--name", "next"], "b")
    run = scored(job, least=5)
    assert os.getpgid(job_pid(job)) == job_pid(job) != os.getpgrp()
    assert jobs.cancel(waiting.id).state == "cancelled"
    assert jobs.cancel(job.id).is_cancelling
    job = wait(job, "cancelled")
    assert Run(run.path).state == "cancelled"
    before = len(Run(run.path).items())
    assert before > 0
    until(no_worker)
    assert jobs.find_job(waiting.id).run_path is None

    again = jobs.resume(job.id)
    assert jobs.resume(job.id).attempt == again.attempt == 2
    assert again.words_to_run[-2:] == ("--resume", str(run.path))
    until(lambda: running(job) and len(Run(run.path).items()) > before)
    assert jobs.find_job(job.id).run_paths == [run.path]


def test_killed_workers_and_jobs_are_lost_and_go_on(quiet, tiny_folder, own_items, pretended):
    job = jobs.submit(words(tiny_folder, own_items), "a")
    run = scored(job)
    # Only the worker killed: its job goes on.
    worker = json.loads(jobs.worker_file(jobs.jobs_folder(), "cpu").read_text())
    os.kill(worker["pid"], signal.SIGKILL)
    until(no_worker)
    assert jobs.find_job(job.id).state == "running"
    # Then the job, too, as by a power cut: nobody is left to write a state.
    os.killpg(job_pid(job), signal.SIGKILL)
    job = wait(job, "lost")
    assert job.stored_state == "running"
    assert job.can_resume

    before = len(Run(run.path).items())
    jobs.resume(job.id)
    until(lambda: running(job) and len(Run(run.path).items()) > before)
    os.kill(job_pid(job), signal.SIGKILL)
    job = wait(job, "lost")
    assert "SIGKILL" in job.error
    assert Run(run.path).state == "lost"
    until(no_worker)


def job_pid(job: Job) -> int:
    return jobs.find_job(job.id).process["pid"]


def running(job: Job) -> bool:
    now = jobs.find_job(job.id)
    return now.stored_state == "running" and is_alive(now.process)


def fake(root: Path, job_id: str = "20260101-000000-abcdef", **values) -> Job:
    """A job folder without any process."""
    root.mkdir(parents=True, exist_ok=True)
    job = Job(**{"id": job_id, "words": ("eval",), "device": "cpu", "root": str(root)} | values)
    jobs.save(job)
    return job


def test_a_hard_stop_follows_the_grace(quiet, monkeypatch):
    """A process that ignores SIGTERM is killed once the grace has passed."""
    root = jobs.jobs_folder()
    code = "import signal,time; signal.signal(15, signal.SIG_IGN); print(1, flush=True)\n"
    line = [sys.executable, "-c", code + "while True: time.sleep(1)"]
    stubborn = subprocess.Popen(line, start_new_session=True, stdout=subprocess.PIPE)
    stubborn.stdout.readline()
    process = {"pid": stubborn.pid, "pid_started": psutil.Process(stubborn.pid).create_time()}
    job = fake(root, stored_state="running", started=time.time(), process=process)
    jobs.cancel(job.id, grace_seconds=0.5)  # also: a worker is started to do it
    time.sleep(0.2)
    assert stubborn.poll() is None
    wait(job, "cancelled")
    assert stubborn.wait(300) == -signal.SIGKILL


def test_what_became_of_a_job_nobody_watched(quiet):
    root = jobs.jobs_folder()
    gone = {"pid": 2**22 + 1, "pid_started": 1.0}
    job = fake(root, stored_state="running", process=gone)
    assert job.state == "lost"
    run = quiet / "stage1_vanilla_eval" / "20260101-000000"
    run.mkdir(parents=True)
    (job.folder / "runs.txt").write_text(f"{run}\n")
    write_json(run / "config.json", {"schema": 1, "config": {}})
    write_json(run / "status.json", {"state": "failed", "error": "no"})
    assert job.state == "failed"
    write_json(run / "metrics.json", {"schema": 1})
    assert job.state == "done"


def test_a_pid_that_now_is_another_process_is_not_signalled(quiet):
    """After a restart of the machine the pid may belong to anybody: to this test, say."""
    process = {"pid": os.getpid(), "pid_started": 1.0}
    job = fake(jobs.jobs_folder(), stored_state="running", process=process)
    assert job.state == "lost"
    assert jobs.cancel(job.id).cancel_at is None


HARMED = {
    "words": 3,
    "created": None,
    "stored_state": "x",
    "process": {"pid": "x"},
    "estimate": {"seconds": []},
    "started": 1e99,
    "id": "another",
    "attempt": -1,
}


@pytest.mark.parametrize("name", [*HARMED, "torn", "list", "deep", "pipe"])
def test_a_damaged_job_is_told_and_can_only_be_removed(quiet, name):
    good, bad = (fake(jobs.jobs_folder(), f"20260101-00000{n}-abcdef") for n in (1, 2))
    path = bad.folder / "job.json"
    values = json.loads(path.read_text())
    if name == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif name in HARMED:
        path.write_text(json.dumps({**values, name: HARMED[name]}))
    else:
        path.write_text({"torn": "{", "list": "[]", "deep": "[" * 200_000}[name])
    by_id = {job.id: job for job in jobs.list_jobs()}
    assert set(by_id) == {good.id, bad.id}
    if name == "created":  # null is as if it were not there
        assert by_id[bad.id].created == 0
        return
    job = by_id[bad.id]
    assert (job.state, job.can_resume) == ("failed", False)
    assert "job.json" in job.error
    for change in (jobs.cancel, jobs.resume):
        with pytest.raises(UserError, match="cannot be used"):
            change(job.id)
    jobs.forget(job.id)
    assert [job.id for job in jobs.list_jobs()] == [good.id]
    with pytest.raises(UserError, match="there is no job"):
        jobs.find_job("../../etc")


def test_the_phases_of_a_start_are_named_as_they_come(quiet, tiny_folder, own_items, monkeypatch):
    job = fake(jobs.jobs_folder())
    monkeypatch.setenv("BIDIR_JOB_DIR", str(job.folder))
    assert job.phase == ""
    assert main(words(tiny_folder, own_items, "--limit", "1")) == 0
    lines = (job.folder / PHASES).read_text().splitlines()
    assert lines == ["Reading the items", "Loading the weights", "Checking the mask (probe)"]
    assert job.phase == lines[-1]


def test_a_queue_without_a_worker_is_noticed_and_goes_on(quiet, tiny_folder, own_items, pretended):
    line = tuple(words(tiny_folder, own_items, "--limit", "1"))
    job = fake(jobs.jobs_folder(), words=line, cwd=str(quiet), queued=time.time() - 2)
    assert jobs.stalled(jobs.list_jobs()) == []  # a worker that was asked for has time to appear
    jobs.save(replace(job, queued=time.time() - 60))
    assert jobs.stalled(jobs.list_jobs()) == ["cpu"]
    jobs.go_on("cpu")
    wait(job, "done")
    assert jobs.stalled(jobs.list_jobs()) == []
    jobs.forget(job.id)
    assert jobs.list_jobs() == []
    assert Run(job.run_path or next((quiet / "stage1_vanilla_eval").iterdir())).state == "done"


def test_a_job_of_several_regimes_goes_on_with_those_that_are_left(
    quiet, tiny_folder, own_items, pretended, monkeypatch
):
    line = words(tiny_folder, own_items, "--limit", "3", "--name", "mine")
    gone = {"pid": 2**22 + 1, "pid_started": 1.0}
    both = (*line, "--regime", "causal,bidirectional:sink=1,tail=2")
    job = fake(jobs.jobs_folder(), words=both, stored_state="running", process=gone)
    monkeypatch.setenv("BIDIR_JOB_DIR", str(job.folder))
    assert main(line) == 0  # as if it had been killed between the two
    monkeypatch.delenv("BIDIR_JOB_DIR")
    assert jobs.find_job(job.id).state == "lost"
    jobs.resume(job.id)
    job = wait(job, "done")
    runs = [Run(path) for path in job.run_paths]
    assert [run.regime for run in runs] == ["causal", "bidirectional:sink=1,tail=2"]
    assert {(run.state, run.name, run.metrics["n_items"]) for run in runs} == {("done", "mine", 3)}


def test_read_only_refuses(quiet, monkeypatch):
    job = fake(jobs.jobs_folder(), stored_state="cancelled")
    monkeypatch.setenv("BIDIR_READ_ONLY", "1")
    for action in (jobs.cancel, jobs.resume, jobs.forget, jobs.go_on, jobs.submit):
        with pytest.raises(UserError, match="read-only"):
            action(["eval", "--model", "x"] if action is jobs.submit else job.id)
    assert jobs.list_jobs() == [job]


@pytest.mark.parametrize("line", [[], ["rm", "-rf"], ["--model"]])
def test_only_commands_that_make_runs(quiet, line):
    with pytest.raises(UserError, match="jobs are eval"):
        jobs.submit(line)


def test_devices_share_a_queue_by_what_they_are():
    assert jobs.queue_device(["eval", "--device", "cpu"]) == "cpu"
    assert jobs.queue_device(["eval", "--device=cuda:1"]) == "cuda:1"
    assert jobs.queue_device(["eval", "--device", "cuda"]) == "cuda:0"
    assert jobs.queue_device(["eval"]) in ("cpu", "cuda:0", "mps")
