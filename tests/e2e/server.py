"""Start the app and a browser for tests and screenshots."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

ROOT = Path(__file__).resolve().parent.parent.parent
CHROMIUM_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
]  # fmt: skip
# With a heading: a page that has not begun to run is idle too.
IDLE = '[data-testid="stApp"][data-test-script-state="notRunning"] h1'


class Server:
    """A running app: its address and process."""

    def __init__(self, runs: Path, port: int, process: subprocess.Popen[bytes]) -> None:
        self.runs, self.port, self.process = runs, port, process

    def url(self, page: str = "", **query: str) -> str:
        text = "?" + urlencode(query, quote_via=quote) if query else ""
        return f"http://127.0.0.1:{self.port}/{page}{text}"


@contextlib.contextmanager
def serve(runs: Path, **environment: str) -> Iterator[Server]:
    """The app on a free port, reading ``runs``; the process ends with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = runs / ".server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "streamlit", "run", "app.py",
                f"--server.port={port}", "--server.headless=true",
            ],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            env={**os.environ, "BIDIR_RUNS_DIR": str(runs), **environment},
        )  # fmt: skip
        try:
            _wait(port, process, log)
            yield Server(runs, port, process)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        if process.poll() is not None:
            raise RuntimeError(f"the app stopped:\n{log.read_text()[-3000:]}")
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=1)
            return
        time.sleep(0.1)
    raise RuntimeError("the app did not start in 30 s")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium, as Debian ships it."""
    from playwright.sync_api import sync_playwright

    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_FLAGS)
        try:
            yield browser
        finally:
            browser.close()
