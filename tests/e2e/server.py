"""Start the app and a browser for tests and screenshots."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psutil

from tests.e2e.nursery import ROOT, Nursery, free_port

CHROMIUM_FLAGS = """
    --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
    --disable-background-networking --disable-component-update --disable-dev-shm-usage
"""
# A page that is open for seconds is not worth compiling well. Not where time is measured.
QUICK = "--js-flags=--no-opt --no-maglev --always-sparkplug"
# With a heading: a page that has not begun to run is idle too.
IDLE = '[data-testid="stApp"][data-test-script-state="notRunning"] h1'


class Server:
    """A running app: its address and process."""

    def __init__(self, runs: Path, port: int, process: psutil.Process) -> None:
        self.runs, self.port, self.process = runs, port, process

    def url(self, page: str = "", **query: str) -> str:
        text = "?" + urlencode(query, quote_via=quote) if query else ""
        return f"http://127.0.0.1:{self.port}/{page}{text}"


@contextlib.contextmanager
def serve(
    runs: Path, nursery: Nursery | None = None, *, port: int = 0, **environment: str
) -> Iterator[Server]:
    """The app, reading ``runs``; the process ends with the block.

    It is started as a user would on a free port, or forked by a ``nursery``, which is quicker, on
    the port of all its servers; or on ``port``.
    """
    port = port or (nursery.port if nursery else free_port())
    words = ["streamlit", "run", "app.py", f"--server.port={port}", "--server.headless=true"]
    wanted = {**os.environ, "BIDIR_RUNS_DIR": str(runs), **environment}
    log = runs / ".server.log"
    with log.open("wb") as out:
        if nursery is not None:
            process = psutil.Process(nursery.start(words, wanted, log))
        else:
            process = psutil.Popen(
                [sys.executable, "-m", *words],
                cwd=ROOT,
                env=wanted,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
    try:
        _wait(port, process, log)
        yield Server(runs, port, process)
    finally:
        _end(process)


def _end(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.terminate()
        try:
            process.wait(10)
        except psutil.TimeoutExpired:
            process.kill()


def _wait(port: int, process: psutil.Process, log: Path) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            raise RuntimeError(f"the app stopped:\n{log.read_text()[-3000:]}")
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=10)
            return
        time.sleep(0.05)
    raise RuntimeError("the app did not start in five minutes")


@contextlib.contextmanager
def chromium(*more_flags: str) -> Iterator[Any]:
    """A headless Chromium, as Debian ships it."""
    from playwright.sync_api import sync_playwright

    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=[*CHROMIUM_FLAGS.split(), *more_flags]
        )
        new_context = browser.new_context

        def patient(**options: Any) -> Any:
            """Whatever is waited for may take long on a busy machine."""
            context = new_context(**options)
            context.set_default_timeout(120_000)
            return context

        browser.new_context = patient
        try:
            yield browser
        finally:
            browser.close()
