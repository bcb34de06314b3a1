"""How fast the pages are, in a warm browser; measured, printed, and failed at twice the budget."""

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.server import IDLE

pytest.importorskip("playwright")
pytestmark = pytest.mark.alone

# page -> (main element besides the heading, budget in seconds)
PAGES = {
    "": (".b-score", 2.0),
    "runs": ("[data-testid=stDataFrame] canvas", 1.5),
    "compare": (".rows .mark", 2.0),
    "flips": ("[data-testid=stDataFrame] canvas", 1.5),
    "item": (".b-prompt", 1.0),
    "masks": (".js-plotly-plot .nsewdrag", 2.5),
    "lab": (".js-plotly-plot .scatterlayer", 2.0),
    "playground": ("textarea", 1.0),
    "launch": (".b-kv", 1.0),
    "report": (".rows .mark", 1.5),
}


ROUNDS = 3  # other work on the machine can spoil a round; a slow page spoils all of them
TIMES = 5  # how often to measure where the first time in a warm server is not in budget already


def within(name: str, budget: float, measure: Callable[[int], float]) -> None:
    """Fails when the median of every round is over twice the budget. ``measure`` takes the number
    of the repetition and gives seconds; the first one warms browser and server."""
    for _ in range(ROUNDS):
        measure(0)
        times = [measure(1)]
        if times[0] > budget:
            times += [measure(number) for number in range(2, TIMES)]
        middle = statistics.median(times)
        print(
            f"{name:28s} median {middle:5.2f} s of {len(times)}, slowest {max(times):5.2f} s, "
            f"budget {budget} s"
        )
        if middle <= 2 * budget:
            return
        time.sleep(5)
    raise AssertionError(f"{name}: {middle:.2f} s against a budget of {budget} s")


def opening(tab, url: str, element: str) -> float:
    """Seconds until the heading and the main element are visible."""
    start = time.perf_counter()
    tab.page.goto(url)
    tab.page.locator("h1").first.wait_for()
    tab.page.locator(element).first.wait_for()
    seconds = time.perf_counter() - start
    tab.page.wait_for_selector(IDLE)
    return seconds


@pytest.fixture(scope="module")
def sweep(runs, runs_root, seeds):
    """What the Lab page opens on."""
    shutil.copytree(seeds.sweep, runs_root, dirs_exist_ok=True)


@pytest.mark.parametrize("page", PAGES)
def test_page_opens_in_time(page, server, runs, sweep, tab):
    element, budget = PAGES[page]
    query = {"a": runs["stage1"].id, "b": runs["stage2"].id, "item": "piqa/3"}
    if page == "masks":
        query = {"prompt": "word " * 400, "cont": " more" * 112}
    url = server.url(page, **query)
    within(f"open {page or 'overview'}", budget, lambda _: opening(tab, url, element))


def test_filtering_ten_thousand_items(server, runs, tab):
    tab.page.goto(server.url("flips", a=runs["large1"].id, b=runs["large2"].id))
    tab.page.get_by_text("of 10,000 paired items").wait_for()
    tab.page.wait_for_selector(IDLE)

    def measure(number: int) -> float:
        box = tab.page.get_by_label("Search the texts")
        box.fill(("bicycle", "winter", "oven", "stones", "river")[number])
        before = tab.page.get_by_text("of 10,000 paired items").inner_text()
        start = time.perf_counter()
        box.press("Enter")
        tab.page.wait_for_function(
            "before => ![...document.querySelectorAll('.b')].some(e => e.innerText == before)",
            arg=before,
        )
        seconds = time.perf_counter() - start
        tab.page.wait_for_selector(IDLE)
        return seconds

    within("filter 10,000 items", 1.0, measure)


def test_next_item(server, runs, tab):
    query = {"a": runs["stage1"].id, "b": runs["stage2"].id, "flip": "broken"}
    tab.page.goto(server.url("item", **query))
    # A key pressed before there is a button is lost.
    tab.page.locator(".b-prompt").wait_for()
    tab.page.locator(".st-key-go-j button:enabled").first.wait_for()
    tab.page.wait_for_selector(IDLE)

    def measure(_: int) -> float:
        title = tab.page.locator("h1").inner_text()
        start = time.perf_counter()
        tab.page.keyboard.press("j")
        tab.page.wait_for_function(
            "title => document.querySelector('h1').innerText != title", arg=title, polling=10
        )
        seconds = time.perf_counter() - start
        tab.page.wait_for_selector(IDLE)
        return seconds

    within("next item", 0.3, measure)


def test_the_server_stays_small_and_never_imports_torch(server):
    """After all of the above; with larger pairs on every page: see test_server_load."""
    process = Path(f"/proc/{server.process.pid}")
    resident = int((process / "statm").read_text().split()[1]) * 4096 / 1e6
    print(f"server memory {resident:.0f} MB")
    assert "torch" not in (process / "maps").read_text()
    assert resident < 500
