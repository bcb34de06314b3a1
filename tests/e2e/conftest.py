"""One seeded runs folder, one server and one browser for the browser tests."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import filelock
import pytest

from bidir_core.runs.run import Run
from tests.e2e.driving import LISTEN
from tests.e2e.nursery import Nursery, free_port
from tests.e2e.seed import seed_all
from tests.e2e.server import QUICK, chromium, serve

SIZE = {"width": 1280, "height": 900}


def pytest_collection_modifyitems(items):
    for item in items:
        if "e2e" in item.path.parts:
            item.add_marker(pytest.mark.e2e)


def is_measured(request) -> bool:
    """Whether this test run measures time."""
    return any(item.get_closest_marker("alone") for item in request.session.items)


@dataclass(frozen=True)
class Seeds:
    """Run folders and their ids, and a sweep in a folder of its own: to read and copy."""

    runs: Path
    sweep: Path
    ids: dict[str, str]


@pytest.fixture(scope="session")
def runs_root(tmp_path_factory):
    return tmp_path_factory.mktemp("e2e") / "runs"


@pytest.fixture(scope="session")
def seeds(tmp_path_factory, worker_id):
    """Made once for all workers of a test run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "seeds"
    with filelock.FileLock(f"{folder}.lock"):
        known = folder / "ids.json"
        if not known.exists():
            folder.mkdir()
            known.write_text(json.dumps(seed_all(folder)))
    ids = json.loads(known.read_text())
    return Seeds(folder / "runs", folder / "sweep", ids)


@pytest.fixture(scope="session")
def runs(runs_root, seeds):
    """A copy of the seeded runs of one's own, to which tests may add."""
    shutil.copytree(seeds.runs, runs_root)
    return {name: Run(runs_root / run_id) for name, run_id in seeds.ids.items()}


@pytest.fixture(scope="session")
def server(runs, runs_root, request):
    """Started as a user would where time is measured, quickly elsewhere."""
    nursery = None if is_measured(request) else request.getfixturevalue("nursery")
    with serve(runs_root, nursery, port=free_port()) as running:
        yield running


@pytest.fixture(scope="session")
def nursery():
    """What :func:`serve` needs to start a fresh server quickly."""
    started = Nursery()
    yield started
    started.close()


@pytest.fixture(scope="session")
def browser(request):
    if not (shutil.which("chromium") or shutil.which("chromium-browser")):
        pytest.skip("no Chromium: apt-get install chromium fonts-dejavu-core")
    with chromium(*([] if is_measured(request) else [QUICK])) as started:
        yield started


class Tab:
    """A page that remembers what it requested and what the console said."""

    def __init__(self, page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._listeners = {
            "request": lambda request: self.requests.append(request.url),
            "console": self._said,
            "pageerror": lambda error: self.errors.append(str(error)),
        }
        for event, listener in self._listeners.items():
            page.on(event, listener)

    def _said(self, line) -> None:
        if line.type == "error":
            self.errors.append(line.text + " " + str((line.location or {}).get("url", "")))

    def leave(self) -> None:
        """Make the page as good as new."""
        for event, listener in self._listeners.items():
            self.page.remove_listener(event, listener)
        if self.page.url.startswith("http"):
            self.page.evaluate("localStorage.clear(), sessionStorage.clear()")
        self.page.goto("about:blank")
        self.page.context.clear_cookies()
        self.page.emulate_media(color_scheme="light")
        self.page.set_viewport_size(SIZE)

    def foreign(self) -> list[str]:
        """Requests to anything but the app itself."""
        return [
            url
            for url in self.requests
            if urlsplit(url).scheme in ("http", "https", "ws", "wss")
            and urlsplit(url).hostname != "127.0.0.1"
        ]

    def unexpected_errors(self) -> list[str]:
        """Console errors, without the two 404s that Streamlit causes on every deep link."""
        own = ("/_stcore/health", "/_stcore/host-config")
        return [
            e for e in self.errors if not ("404" in e and e.strip().split(" ")[-1].endswith(own))
        ]


@pytest.fixture(scope="session")
def pages(browser):
    """The one page that tests take turns with: the process of a new one costs two seconds."""
    kept: list = []
    yield kept
    for page in kept:
        page.context.close()


@pytest.fixture
def tab(browser, pages, request):
    """Where no time is measured, a reader who prefers no motion: that saves a sixth of a load."""
    if not pages:
        motion = "no-preference" if is_measured(request) else "reduce"
        pages.append(browser.new_context(viewport=SIZE, reduced_motion=motion).new_page())
        pages[0].add_init_script(LISTEN)
    used = Tab(pages[0])
    yield used
    try:
        used.leave()
    except Exception:  # it has crashed or hangs: the next test gets another one
        pages.pop().context.close()
