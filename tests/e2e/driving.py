"""What the browser tests share: the pages there are, and a few gestures."""

from __future__ import annotations

from bidir_core.store import Run
from bidir_ui import shell
from tests.e2e.server import IDLE

TITLES = {"overview": "What does bidirectional prefill do?", "item": "piqa/3"}


def address(spec: shell.PageSpec) -> str:
    """The page's path in the app's URL."""
    return "" if spec.key == "overview" else spec.key


# Every page that exists: address -> its first heading. A new page file is tested by itself.
HEADINGS = {
    address(spec): TITLES.get(spec.key, spec.title)
    for spec in shell.PAGES
    if (shell.ROOT / spec.path).exists()
}
WRITING = {address(spec) for spec in shell.PAGES if spec.writes}


def chosen(runs: dict[str, Run], **more: str) -> dict[str, str]:
    """The query of the seeded pair and one of its items."""
    return {"a": runs["stage1"].id, "b": runs["stage2"].id, "item": "piqa/3"} | more


def go(tab, url: str, heading: str | None = None) -> None:
    """Open an address and wait until its script has ended."""
    tab.page.goto(url)
    idle(tab)
    if heading:
        tab.page.get_by_role("heading", name=heading, exact=True).first.wait_for(timeout=10_000)


def idle(tab) -> None:
    tab.page.wait_for_selector(IDLE, timeout=20_000)


def main_text(tab) -> str:
    return tab.page.locator("[data-testid=stMain]").inner_text()


def click_row(tab, row: int) -> None:
    """Select a row of the first table: it is a canvas, so by position."""
    box = tab.page.locator("[data-testid=stDataFrame]").first.bounding_box()
    tab.page.mouse.click(box["x"] + 15, box["y"] + 35 + 35 * row + 17)


def query(tab, name: str) -> str:
    """A parameter of the address as it is now."""
    return tab.page.evaluate("name => new URL(location).searchParams.get(name) ?? ''", name)
