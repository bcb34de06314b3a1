"""axe-core over every page in both colour schemes, and no page wider than its window."""

from __future__ import annotations

import pytest

from tests.e2e.driving import HEADINGS, chosen, go

pytest.importorskip("playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

# Rules that Streamlit's own elements break: rule -> (where it may, why it is not ours to repair).
STREAMLITS_OWN: dict[str, tuple[str, str]] = {}
VIOLATIONS = {"resultTypes": ["violations"]}  # what passes need not be listed
SPILL = (
    "() => { const m = document.querySelector('[data-testid=stMain]');"
    " return m.scrollWidth - m.clientWidth }"
)


def violations(page) -> list[str]:
    """What axe finds that is ours, a line each."""
    found = []
    for rule in axe.Axe().run(page, options=VIOLATIONS).response["violations"]:
        where, _why = STREAMLITS_OWN.get(rule["id"], ("", ""))
        for node in rule["nodes"]:
            if where and page.locator(str(node["target"][0])).first.evaluate(
                "(element, where) => !!element.closest(where)", where
            ):
                continue
            found.append(f"{rule['id']}: {node['html'][:200]} {node['failureSummary'][:300]}")
    return found


@pytest.mark.parametrize("page", HEADINGS)
def test_a_page_is_accessible_and_never_scrolls_sideways(page, server, runs, tab):
    go(tab, server.url(page, **chosen(runs)), HEADINGS[page])
    look(tab)


@pytest.mark.parametrize("panel", "2345")
def test_so_are_the_panels_of_the_overview(panel, server, runs, tab):
    go(tab, server.url("", **chosen(runs, panel=panel)), HEADINGS[""])
    look(tab)


@pytest.mark.parametrize(
    ("page", "query"),
    [
        ("item", {"item": "piqa/999999"}),
        ("flips", {"a": "stage1_vanilla_eval/none"}),
        ("flips", {"q": "no item says this"}),
        ("masks", {"regime": "sideways"}),
        ("launch", {"stage": "stage4"}),
    ],
)
def test_so_are_errors_and_empty_pages(page, query, server, runs, tab):
    go(tab, server.url(page, **chosen(runs, **query)))
    look(tab)


def test_so_is_the_help(server, tab):
    go(tab, server.url())
    tab.page.locator(".st-key-help button").click()
    tab.page.get_by_role("dialog").wait_for()
    look(tab)


def look(tab) -> None:
    page = tab.page
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(
            "scheme => getComputedStyle(document.querySelector('.stApp')).colorScheme == scheme",
            arg=scheme,
        )
        assert not violations(page), f"{page.url} {scheme}"
    for width in (1920, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function(f"({SPILL})() <= 0", timeout=3000)
