"""What the app costs its machine: memory with 50,000 items on disk, and a tab that watches a job."""

import json
import os
import shutil
import threading
import time

import psutil
import pytest

from bidir_core.common.process import this_process
from bidir_core.runs.run import Run
from bidir_ui.launch.jobs_view import POLL_SECONDS
from tests.app import fake_job
from tests.e2e.driving import HEADINGS, go, visit
from tests.e2e.server import serve
from tests.factory import make_run

pytest.importorskip("playwright")


def test_memory_with_fifty_thousand_items(runs, runs_root, tmp_path, nursery, tab):
    """Every page over several large pairs, from two run roots, in one server."""
    large = [runs["large1"], runs["large2"]]
    for number in range(3):  # ten thousand items each, beside the 27,000 that are seeded
        copy = tmp_path / large[1].stage / f"20260101-00000{number}"
        shutil.copytree(large[1].path, copy)
        large.append(Run(copy))
    roots = os.pathsep.join(map(str, (runs_root, tmp_path)))
    with serve(runs_root, nursery, BIDIR_RUNS_DIR=roots) as server:
        for page in HEADINGS:
            (visit if page else go)(
                tab, server.url(page, a=large[0].id, b=large[1].id, item="hellaswag/7")
            )
        for other in large[2:]:
            visit(tab, server.url("flips", a=large[0].id, b=other.id))
        n_items = sum(
            int((run.metrics or {}).get("n_items") or 0) for run in (*runs.values(), *large[2:])
        )
        process = psutil.Process(server.process.pid)
        resident = process.memory_info().rss / 1e6
        maps = {item.path for item in process.memory_maps()}
    print(f"\nserver memory {resident:.0f} MB with {n_items:,} items on disk")
    assert n_items > 50_000
    assert resident < 500
    assert any("pyarrow" in path for path in maps)
    assert not any("torch" in path for path in maps)


@pytest.fixture
def running_job(tmp_path):
    """A job of 4,000 items that goes on by itself, in a runs folder of its own."""
    root = tmp_path / "runs"
    run = make_run(root, n_items=4000, state="running")
    going = {"stored_state": "running", "started": time.time(), "process": this_process()}
    job = fake_job(root, ("eval", "--model", "m"), **going)
    (job.folder / "runs.txt").write_text(f"{run.path}\n")
    lines = (run.path / "items.jsonl").read_bytes().splitlines(keepends=True)
    said = json.loads((run.path / "status.json").read_text())
    stop = threading.Event()

    def go_on() -> None:
        done = said["done"]
        while not stop.wait(0.5):
            with open(run.path / "items.jsonl", "ab") as file:
                file.writelines(lines[:20])
            done += 20
            (run.path / "status.new").write_text(json.dumps({**said, "done": done}))
            (run.path / "status.new").replace(run.path / "status.json")
            with open(job.log, "a") as log:
                log.write(f"items: {done}\n")

    thread = threading.Thread(target=go_on)
    thread.start()
    yield root
    stop.set()
    thread.join()


def test_a_tab_that_watches_a_job_costs_little(running_job, nursery, tab):
    """Processor time of the server, which other work on the machine does not change."""
    with serve(running_job, nursery) as server:
        go(tab, server.url("launch"), HEADINGS["launch"])
        seen = tab.page.get_by_text("of 4,000").first
        seen.wait_for()
        tab.page.wait_for_function(  # it does follow the job
            "before => !document.body.innerText.includes(before)",
            arg=seen.inner_text(),
        )
        process = psutil.Process(server.process.pid)
        start, used = time.monotonic(), sum(process.cpu_times()[:2])
        tab.page.wait_for_timeout(1000 * 2 * POLL_SECONDS)
        share = (sum(process.cpu_times()[:2]) - used) / (time.monotonic() - start)
    print(f"\na tab that watches a job costs {100 * share:.1f} % of a core")
    assert share < 0.15
