"""How the app bears size, run by hand: ``python -m tests.e2e.scale [loads | items | folders]``.

``loads``: the server's memory over 300 page loads. ``items``: each page on a pair of 50,000 items.
``folders``: each page, and a click, among 5,000 run folders. It prints seconds by the clock and, in
brackets, of the server's processor, which other work on the machine changes little. The Lab has no sweep.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

from tests.app import STAGE2, pair
from tests.e2e.driving import HEADINGS
from tests.e2e.seed import quickly
from tests.e2e.server import IDLE, Server, chromium, serve
from tests.e2e.test_budgets import PAGES, opening
from tests.factory import make_run

N_LOADS, N_ITEMS, N_FOLDERS = 300, 50_000, 5_000


def opened(page: Any, server: Server, name: str, query: Mapping[str, str]) -> float:
    """Seconds until the page's script has ended."""
    start = time.perf_counter()
    page.goto(server.url(name, **query))
    page.wait_for_selector(IDLE, timeout=300_000)
    return time.perf_counter() - start


def also_processor(
    server: Server, seconds: Callable[..., float], *given: Any
) -> tuple[float, float]:
    """What ``seconds`` gives, and those of the server's processor meanwhile."""
    before = sum(server.process.cpu_times()[:2])
    return seconds(*given), sum(server.process.cpu_times()[:2]) - before


def times(page: Any, server: Server, query: Mapping[str, str]) -> None:
    """Of the first opening the whole script, of three more the median until the main element shows."""
    for name, (element, budget) in PAGES.items():
        shown_by = ".js-plotly-plot" if name == "masks" else element
        first = also_processor(server, opened, page, server, name, query)
        tab, url = SimpleNamespace(page=page), server.url(name, **query)
        again = [also_processor(server, opening, tab, url, shown_by) for _ in range(3)]
        clock, cpu = map(statistics.median, zip(*again))
        print(
            f"{name or 'overview':12s} first {first[0]:6.2f} s ({first[1]:5.2f} s), "
            f"then {clock:5.2f} s ({cpu:5.2f} s), budget {budget} s",
            flush=True,
        )


def loads(page: Any, root: Path) -> None:
    a, b = pair(root, n_items=2299)
    query = {"a": a.id, "b": b.id, "item": "piqa/3"}
    with serve(root) as server:
        memory = psutil.Process(server.process.pid).memory_info
        for name in HEADINGS:
            opened(page, server, name, query)
        for number in range(N_LOADS + 1):
            if number % 50 == 0:
                print(f"{number:4d} loads: {memory().rss / 1e6:.0f} MB", flush=True)
            opened(page, server, list(HEADINGS)[number % len(HEADINGS)], query)


def items(page: Any, root: Path) -> None:
    with quickly():
        a, b = pair(root, n_items=N_ITEMS)
    with serve(root) as server:
        times(page, server, {"a": a.id, "b": b.id, "item": "piqa/3"})
        print(f"server {psutil.Process(server.process.pid).memory_info().rss / 1e6:.0f} MB")


def folders(page: Any, root: Path) -> None:
    a, b = pair(root, n_items=100)
    small = make_run(root, STAGE2, n_items=5, regime="bidirectional:sink=1")
    for number in range(N_FOLDERS):
        at = f"202601{1 + number // 3600 % 28:02d}-{number // 60 % 60:02d}{number % 60:02d}00"
        shutil.copytree(small.path, root / STAGE2 / f"{at}_copy{number}")
    with serve(root) as server:
        times(page, server, {"a": a.id, "b": b.id, "item": "piqa/3"})
        opened(page, server, "masks", {})
        start = time.perf_counter()
        page.get_by_role("radio", name="Difference").click()
        page.wait_for_function("new URL(location).searchParams.get('view') == 'difference'")
        page.wait_for_selector(IDLE)
        print(f"a click      {time.perf_counter() - start:5.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    measures = {"loads": loads, "items": items, "folders": folders}
    parser.add_argument("which", nargs="*", choices=measures, default=[*measures])
    for which in parser.parse_args().which:
        print(which)
        with tempfile.TemporaryDirectory() as folder, chromium() as browser:
            measures[which](browser.new_page(), Path(folder) / "runs")


if __name__ == "__main__":
    main()
