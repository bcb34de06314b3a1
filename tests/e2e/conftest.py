"""One seeded runs folder, one server and one browser for the browser tests."""

from __future__ import annotations

import shutil
from urllib.parse import urlsplit

import pytest

from tests.e2e.seed import seed, seed_large
from tests.e2e.server import chromium, serve


def pytest_collection_modifyitems(items):
    for item in items:
        if "e2e" in str(item.path):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def runs_root(tmp_path_factory):
    return tmp_path_factory.mktemp("e2e") / "runs"


@pytest.fixture(scope="session")
def runs(runs_root):
    runs_root.mkdir(parents=True)
    return seed(runs_root) | seed_large(runs_root)


@pytest.fixture(scope="session")
def server(runs, runs_root):
    with serve(runs_root) as running:
        yield running


@pytest.fixture(scope="session")
def browser():
    if not (shutil.which("chromium") or shutil.which("chromium-browser")):
        pytest.skip("no Chromium: apt-get install chromium fonts-dejavu-core")
    with chromium() as started:
        yield started


class Tab:
    """A page that remembers what it requested and what the console said."""

    def __init__(self, page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda line: line.type == "error" and self.errors.append(line.text + " " + str((line.location or {}).get("url", ""))))  # fmt: skip
        page.on("pageerror", lambda error: self.errors.append(str(error)))

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


@pytest.fixture
def tab(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield Tab(context.new_page())
    context.close()
