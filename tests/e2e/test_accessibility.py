"""axe-core over every page; on a desk, a tablet and a phone no page is wider
than its window and no text is broken into a column of letters."""

from collections.abc import Callable, Mapping, Sequence

import pytest

from tests.e2e.driving import HEADINGS, chosen, go, visit
from tests.e2e.nursery import ALONE
from tests.e2e.server import serve
from tests.factory import TASKS

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

VIOLATIONS = {"resultTypes": ["violations"]}  # what passes need not be listed
# What another colour scheme can break; all else is the same document.
COLOURS = VIOLATIONS | {"runOnly": ["color-contrast", "link-in-text-block"]}
# Of the page, and of what would hide its last choices on a phone.
SPILL = """() => Math.max(...[...document.querySelectorAll(
    '[data-testid=stMain], [data-testid=stMain] [role=radiogroup]'
)].map(e => e.scrollWidth - e.clientWidth))"""
# Texts that stand on as many lines as they have letters, or nearly.
LETTERS = """() => {
    const walk = document.createTreeWalker(
        document.querySelector('[data-testid=stMain]'), NodeFilter.SHOW_TEXT);
    const found = [], range = document.createRange();
    while (walk.nextNode()) {
        const text = walk.currentNode.textContent.trim();
        range.selectNodeContents(walk.currentNode);
        const lines = new Set([...range.getClientRects()].map(box => Math.round(box.top))).size;
        if (lines > 3 && lines > text.length / 3) found.push(text);
    }
    return found;
}"""

# Tables of ours, those that offer their content, tables of Streamlit's, buttons for their content.
COUNT = """() => [
    '.b-table, .b-score', '.b-take', '[data-testid=stDataFrame]', '[class*="-csv"] button'
].map(what => document.querySelectorAll(what).length)"""

FOCUSED = """() => { const e = document.activeElement, style = getComputedStyle(e);
    return [e.tagName, style.outlineStyle, e.innerText] }"""


def violations(page, options: Mapping[str, Sequence[str]] = VIOLATIONS) -> list[str]:
    """What axe finds that is ours, a line each. A document gets its script once."""
    if not page.evaluate("Boolean(window.axe)"):
        page.evaluate(axe.Axe().axe_script)
    found = []
    run = "options => axe.run(document, options).then(found => found.violations)"
    for rule in page.evaluate(run, options):
        for node in rule["nodes"]:
            found.append(f"{rule['id']}: {node['html'][:200]} {node['failureSummary'][:300]}")
    return found


def test_pages_are_accessible_never_scroll_sideways_and_give_their_tables(server, runs, tab):
    """Every table of the app can be taken along as CSV and as Markdown."""
    places = {page: (page, chosen(runs)) for page in HEADINGS if page != "run"}
    places["a run"] = ("run", {"id": runs["stage1"].id})
    places["report"] = ("report", chosen(runs, sections="per_task~cost"))
    seen = []

    def look_at_tables(page: str) -> None:
        tables, taken, frames, buttons = tab.page.evaluate(COUNT)
        # The squares of Compare say what its table has.
        assert tables == taken + (len(TASKS) if page == "compare" else 0), page
        assert frames <= buttons, page
        seen.append(taken + frames)

    look_at(tab, server, places, look_at_tables)
    assert sum(seen) > 8


def test_so_are_errors_empty_pages_and_the_help(server, runs, tab):
    states = {
        "fewer items": ("", {"items": "500"}),
        "no such item": ("item", chosen(runs, item="piqa/999999")),
        "no such run": ("flips", chosen(runs, a="stage1_vanilla_eval/none")),
        "nothing found": ("flips", chosen(runs, q="no item says this")),
        "no such regime": ("masks", chosen(runs, regime="sideways")),
        "not ready": ("launch", chosen(runs, stage="stage4")),
    }
    look_at(tab, server, states)
    tab.page.locator(".st-key-help button").click()
    tab.page.get_by_role("dialog").wait_for()
    assert not wrong(tab)
    assert not tab.foreign()
    assert not tab.unexpected_errors()


def test_so_is_an_app_without_runs(tmp_path, nursery, tab):
    with serve(tmp_path, nursery, **{ALONE: "yes"}) as own:
        look_at(tab, own, {page: (page, {}) for page in ("", "runs", "flips", "lab", "launch")})


def test_focus_is_seen_and_is_not_the_mark_of_the_chosen_page(server, runs, tab):
    go(tab, server.url("runs", **chosen(runs)), "Runs")
    seen = set()
    for _ in range(60):
        tab.page.keyboard.press("Tab")
        name, outline, text = tab.page.evaluate(FOCUSED)
        if name in ("A", "TH") and not text.startswith("Skip to"):  # that one is Streamlit's
            seen.add(name)
            assert outline == "solid", text
    assert seen == {"A", "TH"}


def look_at(
    tab,
    server,
    places: Mapping[str, tuple[str, Mapping[str, str]]],
    also: Callable[[str], object] = str,
) -> None:
    """Go from one to the next as within a visit; all that is wrong anywhere is said at the end."""
    go(tab, server.url())
    found = {}
    for name, (page, query) in places.items():
        visit(tab, server.url(page, **query), HEADINGS[page] if name == page and query else None)
        also(page)
        found[name or "overview"] = wrong(tab)
    assert len(found) == len(places)
    assert not {name: said for name, said in found.items() if said}


def wrong(
    tab, schemes: Sequence[str] = ("dark", "light"), widths: Sequence[int] = (390, 820, 1280)
) -> list[str]:
    """What axe finds on the page as it is, and by how much it is too wide."""
    page, found = tab.page, []
    for scheme, options in zip(schemes, (VIOLATIONS, COLOURS)):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(
            "scheme => getComputedStyle(document.querySelector('.stApp')).colorScheme == scheme",
            arg=scheme,
        )
        found += [f"{scheme}: {line}" for line in violations(page, options)]
    for width in widths:
        page.set_viewport_size({"width": width, "height": 900})
        try:
            page.wait_for_function(f"({SPILL})() <= 0")
        except playwright.TimeoutError:
            found.append(f"{width} wide: {page.evaluate(SPILL)} more than the window")
        found += [f"{width} wide: one letter a line: {text}" for text in page.evaluate(LETTERS)]
    return found
