"""A job in a real browser: started once, through reload, server kill and restart, to its end."""

from __future__ import annotations

import json
import os
import re
import signal
import time

import pytest

from bidir_core import jobs
from bidir_core.store import Run
from tests.e2e.server import IDLE, serve
from tests.tiny_models import save_tiny_model

N_ITEMS = 3000


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty runs folder, a tiny model, and a task that keeps it busy for a while."""
    root = tmp_path / "runs"
    root.mkdir()
    monkeypatch.setenv("BIDIR_RUNS_DIR", str(root))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model = save_tiny_model(tmp_path / "tiny")
    line = {"contexts": ["Which comes next? " * 20], "continuations": [" one", " two"], "gold": 0}
    task = tmp_path / "mine.jsonl"
    task.write_text(
        "".join(
            json.dumps(line | {"contexts": [f"{i}: " + line["contexts"][0]]}) + "\n"
            for i in range(N_ITEMS)
        )
    )
    yield root, {"stage": "stage2", "f.model": str(model), "f.tasks": str(task),
                 "f.device": "cpu", "f.batch_tokens": "1000"}  # fmt: skip
    for job in jobs.list_jobs():
        if job.state == "running" and job.process:
            os.killpg(job.process["pid"], signal.SIGKILL)


def shown(page) -> int:
    """Items done, as the page says."""
    text = page.locator(".b-progress .head").first.inner_text(timeout=30_000)
    found = re.search(r"([\d,]+) of [\d,]+ items", text)
    return int(found[1].replace(",", "")) if found else -1


def until(check, seconds: float):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := check():
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s")


def test_a_job_survives_reload_and_server_and_is_cancelled_and_resumed(place, tab):
    root, query = place
    page = tab.page
    with serve(root) as server:
        page.goto(server.url("launch", **query))
        page.wait_for_selector(IDLE)
        assert "--regime bidirectional" in page.locator("code").first.inner_text()
        page.get_by_role("button", name="Start …").click()
        page.get_by_role("dialog").get_by_role("button", name="Start").dblclick()
        until(lambda: shown(page) > 0, 60)
        (job,) = jobs.list_jobs()  # a double click is one job
        assert job.estimate["n_items"] == N_ITEMS
        page.reload()
        before = shown(page)
        until(lambda: shown(page) > before >= 0, 20)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    assert jobs.find_job(job.id).state == "running"

    with serve(root) as server:
        page.goto(server.url("launch", **query))
        page.wait_for_selector(IDLE)
        until(lambda: shown(page) > before, 20)
        clicked = time.monotonic()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text(re.compile("cancelling|cancelled")).first.wait_for(timeout=5000)
        print(f"\ncancel shown after {time.monotonic() - clicked:.2f} s")
        assert time.monotonic() - clicked < 4  # the budget is 1 s, on an idle machine
        page.get_by_role("button", name="Resume").click(timeout=20_000)
        until(lambda: jobs.find_job(job.id).state == "done", 120)
        page.get_by_text("● done").wait_for(timeout=10_000)
        page.get_by_role("link", name="Open results").wait_for()
    (job,) = jobs.list_jobs()
    run = Run(job.run_path)
    items = run.items(["task", "doc_id"])
    assert job.attempt == 2
    assert len(items) == N_ITEMS
    assert not items.duplicated().any()
    assert not tab.foreign()


def test_two_tabs_start_one_job(place, tab, browser):
    root, query = place
    with serve(root) as server:
        other = browser.new_context().new_page()
        for page in (tab.page, other):  # both are drawn before either starts
            page.goto(server.url("launch", **{**query, "f.limit": "3"}))
            page.wait_for_selector(IDLE)
            page.get_by_role("button", name="Start …").click()
            page.get_by_role("dialog").get_by_role("button", name="Start").wait_for()
        for page in (tab.page, other):
            page.get_by_role("dialog").get_by_role("button", name="Start").click()
        tab.page.get_by_text("● done").wait_for(timeout=40_000)
        other.context.close()
        assert len(jobs.list_jobs()) == 1


def test_read_only_has_no_launch(place, tab):
    root, query = place
    with serve(root, BIDIR_READ_ONLY="1") as server:
        tab.page.goto(server.url("launch", **query))
        tab.page.get_by_text("Launch is closed here").wait_for()
        assert tab.page.get_by_role("button", name="Start …").count() == 0
