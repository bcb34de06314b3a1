"""What the browser tests share: the pages there are, and a few gestures."""

from bidir_core.runs.run import Run
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
        tab.page.get_by_role("heading", name=heading, exact=True).first.wait_for()


# In every page: when the server last said something.
LISTEN = """window.WebSocket = class extends WebSocket {
    constructor(...given) {
        super(...given);
        this.addEventListener('message', () => { window.heard = performance.now() });
    }
}"""
# Push an address and say so, as the browser's Back button does; done when its script has ended.
# A short script begins and ends in one frame, unseen: then a moment of silence tells.
_VISIT = """url => new Promise((done, fail) => {
    const start = performance.now(), app = document.querySelector('[data-testid=stApp]');
    const isRunning = () => app.dataset.testScriptState != 'notRunning';
    let ran = false;
    const watch = new MutationObserver(() => { ran ||= isRunning() });
    watch.observe(app, {attributes: true, attributeFilter: ['data-test-script-state']});
    const look = setInterval(() => {
        const now = performance.now(), quiet = window.heard > start && now - window.heard > 200;
        const late = now - start > 120000;
        if (isRunning() ? !late : !(ran || quiet || late)) return;
        watch.disconnect();
        clearInterval(look);
        if (late) fail(new Error('the page did not run: ' + url)); else done();
    }, 20);
    history.pushState({}, '', url);
    dispatchEvent(new PopStateEvent('popstate'));
})"""


def visit(tab, url: str, heading: str | None = None) -> None:
    """Go to another address of the app without loading it anew: half the cost of :func:`go`."""
    tab.page.evaluate(_VISIT, url)
    idle(tab)
    if heading:
        tab.page.get_by_role("heading", name=heading, exact=True).first.wait_for()


def idle(tab) -> None:
    tab.page.wait_for_selector(IDLE)


def main_text(tab) -> str:
    return tab.page.locator("[data-testid=stMain]").inner_text()


def click_row(tab, row: int) -> None:
    """Select a row of the first table: it is a canvas, so by position."""
    box = tab.page.locator("[data-testid=stDataFrame]").first.bounding_box()
    tab.page.mouse.click(box["x"] + 15, box["y"] + 35 + 35 * row + 17)


def query(tab, name: str) -> str:
    """A parameter of the address as it is now."""
    return tab.page.evaluate("name => new URL(location).searchParams.get(name) ?? ''", name)
