"""A job in a real browser: started once, through reload, server kill and restart, to its end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import statistics
import subprocess
import time
from pathlib import Path

import pytest

from bidir_core import jobs
from bidir_core.common.process import process_identity
from bidir_core.runs.run import Run
from bidir_core.runs.writer import RunWriter
from tests.app import fake_job
from tests.e2e.driving import go, idle
from tests.e2e.server import IDLE, serve
from tests.factory import until, write_lines

N_ITEMS = 300
PRETENDED = Path(__file__).parents[1] / "pretended"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty runs folder; what still runs in it at the end is killed."""
    root = tmp_path / "runs"
    root.mkdir()
    monkeypatch.setenv("BIDIR_RUNS_DIR", str(root))
    yield root
    for job in jobs.list_jobs():
        if job.state == "running" and job.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.process["pid"], signal.SIGKILL)


@pytest.fixture
def form(tmp_path, tiny_folder):
    """The Launch page's form, filled in: a tiny model, and a task of many items for it."""
    line = {"continuations": [" one", " two"], "gold": 0}
    lines = (line | {"contexts": [f"{i}: which comes next?"]} for i in range(N_ITEMS))
    task = write_lines(tmp_path / "mine.jsonl", lines)
    return {
        "stage": "stage2",
        "f.model": str(tiny_folder),
        "f.tasks": task,
        "f.device": "cpu",
        "f.batch_tokens": "1000",
        "f.limit": str(N_ITEMS),  # on a CPU the form begins with fewer
    }


def shown(page) -> int:
    """Items done, as the page says."""
    text = page.locator(".b-progress .head").first.inner_text()
    found = re.search(r"([\d,]+) of [\d,]+ items", text)
    return int(found[1].replace(",", "")) if found else -1


def test_one_job_of_two_tabs_survives_reload_and_server_and_is_cancelled_and_resumed(
    place, form, nursery, tab, browser
):
    """Its process is a real one, which pretends to score: as slowly as there is something to see."""
    root, query = place, form
    slowly = root.parent / "slowly"
    slowly.touch()
    pretended = {"PYTHONPATH": str(PRETENDED), "PRETENDED_SLOWLY": str(slowly)}
    page, other = tab.page, browser.new_context().new_page()
    with serve(root, nursery, **pretended) as server:
        for one in (page, other):  # both are drawn before either starts
            one.goto(server.url("launch", **query))
            one.wait_for_selector(IDLE)
            assert "--regime bidirectional" in one.locator("code").first.inner_text()
            one.get_by_role("button", name="Start …").click()
            one.get_by_role("dialog").get_by_role("button", name="Start").wait_for()
        page.get_by_role("dialog").get_by_role("button", name="Start").dblclick()
        other.get_by_role("dialog").get_by_role("button", name="Start").click()
        other.get_by_text("It is among the jobs below").wait_for()
        other.context.close()
        until(lambda: shown(page) > 0)
        (job,) = jobs.list_jobs()  # neither a double click nor another tab made a second one
        assert job.estimate["n_items"] == N_ITEMS
        page.reload()
        before = shown(page)
        until(lambda: shown(page) > before >= 0)
        before = shown(page)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    assert jobs.find_job(job.id).state == "running"
    until(lambda: Run(job.run_path).status["done"] > before)  # while no server lives

    with serve(root, nursery, **pretended) as server:
        page.goto(server.url("launch", **query))
        page.wait_for_selector(IDLE)
        until(lambda: shown(page) > before)
        assert jobs.find_job(job.id).state == "running"
        page.get_by_role("button", name="Cancel", exact=True).click()
        page.get_by_text(re.compile("cancelling|cancelled")).first.wait_for()
        page.get_by_role("button", name="Resume").wait_for()
        recorded = len(Run(job.run_path).items(["doc_id"]))
        assert before <= recorded < N_ITEMS
        slowly.unlink()
        page.get_by_role("button", name="Resume").click()
        until(lambda: jobs.find_job(job.id).state == "done")
        page.get_by_text("● done").wait_for()
        page.get_by_role("link", name="Open results").wait_for()
    (job,) = jobs.list_jobs()
    items = Run(job.run_path).items(["task", "doc_id"])
    assert job.attempt == 2
    assert len(items) == N_ITEMS
    assert not items.duplicated().any()
    assert not tab.foreign()


@pytest.mark.alone
def test_what_changes_is_seen_in_time(server, tab, monkeypatch):
    """A process that only sleeps stands for the job; what it would write is written here."""
    root = server.runs
    monkeypatch.setenv("BIDIR_RUNS_DIR", str(root))
    asleep = subprocess.Popen(["sleep", "120"], start_new_session=True)
    mark = process_identity(asleep.pid)
    writer = RunWriter.create("stage2_prefill_bidir_eval", {"model": "m"}, root=root)
    going = {"stored_state": "running", "started": time.time(), "process": mark}
    job = fake_job(root, ("eval", "--model", "m"), **going)
    (job.folder / "runs.txt").write_text(f"{writer.path}\n")
    writer.heartbeat(1, 1000)
    page, seen = tab.page, []
    page.goto(server.url("launch", stage="stage2"))
    page.wait_for_selector(IDLE)
    until(lambda: shown(page) == 1)
    for done in (100, 200):
        time.sleep(0.7)  # at another moment between two looks
        start = time.monotonic()
        writer.heartbeat(done, 1000)
        until(lambda done=done: shown(page) == done)
        seen.append(time.monotonic() - start)
    print(f"\nnew progress seen after {statistics.median(seen):.2f} s, budget 3 s")
    start = time.monotonic()
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_text(re.compile("cancelling|cancelled")).first.wait_for()
    cancelled = time.monotonic() - start
    print(f"cancel shown after {cancelled:.2f} s, budget 1 s")
    until(lambda: asleep.poll() is not None)
    until(lambda: jobs.find_job(job.id).state == "cancelled")
    assert statistics.median(seen) <= 6
    assert cancelled <= 2


def test_all_settings_stay_open_while_a_field_changes(server, tab):
    go(tab, server.url("launch"), "Launch")
    tab.page.get_by_text("All settings").click()
    inside = tab.page.locator(".st-key-all-settings input")
    inside.first.wait_for()
    limit = tab.page.get_by_role("textbox", name="Items per task")
    limit.fill("20")
    limit.press("Enter")
    tab.page.get_by_text("--limit 20").first.wait_for()
    idle(tab)
    assert inside.first.is_visible()
