"""The shared site as a reader has it: opened from disk in a browser, on a desk and on a phone."""

from pathlib import Path

import pytest

from bidir_core.report.share import write_site
from bidir_core.runs.run import Run
from tests.app import pair
from tests.attend_factory import make_attend
from tests.e2e.seed import seed_hostile
from tests.report.test_share import explained

pytest.importorskip("playwright")

WIDE = "document.documentElement.scrollWidth - innerWidth"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("shared")
    a, b = pair(root, n_items=200)
    explained(root, b)
    make_attend(root)
    seed_hostile(root)
    assert isinstance(a, Run)
    return write_site(tmp_path_factory.mktemp("site") / "out", [root])


def test_it_opens_from_disk_and_asks_for_nothing(site, tab):
    for name in ["index.html", *(f"items/{path.name}" for path in (site / "items").iterdir())]:
        tab.page.goto((site / name).as_uri())
        assert tab.page.get_by_role("heading", level=1).count() == 1
        for width in (390, 1280):
            tab.page.set_viewport_size({"width": width, "height": 900})
            assert tab.page.evaluate(WIDE) <= 0, (name, width)
        assert tab.page.evaluate("window.hacked") is None
    asked = {url for url in tab.requests if not url.startswith("data:")}
    assert all(url.startswith(site.as_uri()) and url.endswith(".html") for url in asked)
    assert not tab.errors


def test_from_the_start_to_a_reason_in_two_clicks(site, tab):
    tab.page.goto((site / "index.html").as_uri())
    rows = tab.page.locator(".list li:visible")
    everything = rows.count()
    tab.page.get_by_label("Changed").select_option("fixed")
    assert 0 < rows.count() < everything
    assert all("fixed" in text for text in rows.all_inner_texts())
    tab.page.get_by_label("Text").fill("no such words")
    assert rows.count() == 0
    tab.page.goto((site / "index.html").as_uri())
    tab.page.get_by_label("Explained only").check()
    assert 0 < rows.count() < everything
    assert f"{rows.count()} of {everything} shown" in tab.page.locator("output").inner_text()
    rows.first.locator("a").click()
    tab.page.get_by_role("heading", name="Why", exact=True).wait_for()
    assert tab.page.get_by_text("turns the answer back").first.is_visible()
    tab.page.go_back()
    assert tab.page.get_by_label("Explained only").is_checked()  # the filter is in the address
    assert 0 < rows.count() < everything


def test_it_is_accessible(site, browser):
    pytest.importorskip("axe_playwright_python.sync_playwright")
    from tests.e2e.test_accessibility import COLOURS, VIOLATIONS, violations

    context = browser.new_context(bypass_csp=True)  # axe is a script, too
    page = context.new_page()
    page.goto((site / "index.html").as_uri())
    explained_page = page.locator("[data-why] a").first.get_attribute("href")
    for name in ("index.html", explained_page):
        page.goto((site / str(name)).as_uri())
        for scheme, options in (("light", VIOLATIONS), ("dark", COLOURS)):
            page.emulate_media(color_scheme=scheme)
            assert not violations(page, options), (name, scheme)
    context.close()
