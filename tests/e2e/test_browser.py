"""The app in a real browser: deep links, the way to an item, shared links, hostile texts."""

import csv
import json
import re
from pathlib import Path

import pytest

from bidir_ui.kit import fmt
from tests.e2e.driving import (
    HEADINGS,
    WRITING,
    chosen,
    click_row,
    go,
    idle,
    main_text,
    query,
    visit,
)
from tests.e2e.server import IDLE, serve

pytest.importorskip("playwright")


@pytest.mark.parametrize("page", ["item", "launch"])
def test_a_deep_link_is_the_first_request_of_a_fresh_server(page, runs, runs_root, nursery, tab):
    """Read-only, so that the gate is tried before any other page has run. The Overview and the Lab
    are first requests of servers of their own below and in test_lab."""
    with serve(runs_root, nursery, BIDIR_READ_ONLY="1") as fresh:
        closed = page in WRITING
        go(tab, fresh.url(page, **chosen(runs)), HEADINGS[page])
        assert "could not be read" not in main_text(tab)
        assert ("is closed here" in main_text(tab)) == closed
        for name in ("Delete", "Rename", "Start …", "Cancel"):
            assert tab.page.get_by_role("button", name=name).count() == 0
        assert tab.page.get_by_role("link", name="Launch").count() == 0
        if not closed:
            tab.page.get_by_text("Read-only view", exact=True).wait_for()
        assert not tab.foreign()
        assert not tab.unexpected_errors()
        maps = Path(f"/proc/{fresh.process.pid}/maps").read_text()
        assert "pandas" in maps  # the check below looks at the right process
        assert "torch" not in maps


def test_headers_lock_the_page(server, tab):
    response = tab.page.request.get(server.url("flips"))
    policy = response.headers["content-security-policy"]
    assert "img-src 'self' data: blob:" in policy
    assert "form-action 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    tab.page.goto(server.url("_stcore/health"))  # under the same policy, and nothing to load
    assert tab.page.request.get(tab.page.url).headers["content-security-policy"] == policy
    blocked = tab.page.evaluate(
        """() => new Promise(done => {
            addEventListener('securitypolicyviolation', event => done(event.blockedURI));
            new Image().src = 'http://evil.test/x.png';
        })"""
    )
    assert "evil.test" in blocked


def test_from_a_filter_to_an_item_to_a_shared_link(server, runs, browser, tab):
    a, b = runs["stage1"], runs["stage2"]
    go(tab, server.url("flips", a=a.id, b=b.id), "Flips")
    tab.page.get_by_role("button", name=re.compile("broken")).click()
    tab.page.wait_for_function("new URL(location).searchParams.get('flip') == 'broken'")
    idle(tab)
    tab.page.get_by_label("Search the texts").fill("bicycle winter")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_function("new URL(location).searchParams.get('q') == 'bicycle winter'")
    idle(tab)
    assert "▼" in main_text(tab)
    with tab.page.expect_download() as wait:
        tab.page.get_by_role("button", name="CSV", exact=True).click()
    rows = list(csv.DictReader(Path(wait.value.path()).read_text(encoding="utf-8").splitlines()))
    assert a.path.name in wait.value.suggested_filename
    assert {(row["flip"], row["run_a"]) for row in rows} == {("broken", a.id)}
    shown = re.search(r"([\d,]+) of [\d,]+ paired items", main_text(tab))[1]
    assert len(rows) == int(shown.replace(",", ""))
    click_row(tab, 1)
    tab.page.wait_for_url(re.compile("/item"))
    idle(tab)
    item = query(tab, "item")
    tab.page.get_by_role("heading", name=item, exact=True).wait_for()
    tab.page.get_by_text("▼ Broken").wait_for()
    task, doc_id = item.split("/")
    for run in (a, b):
        record = run.item(task, int(doc_id))
        assert "bicycle" in record["contexts"][0] + " ".join(record["continuations"])
        for value in record["ll"]:
            assert fmt.number(value) in main_text(tab)
    # The link, in a browser that has never been here.
    tab.page.get_by_role("button", name=re.compile("^.*Link")).click()
    link = tab.page.locator("[data-testid=stCode] code", has_text="http").inner_text()
    stranger = browser.new_context()
    other = stranger.new_page()
    other.goto(link.strip())
    other.wait_for_selector(IDLE)
    other.get_by_role("heading", name=item, exact=True).wait_for()
    place = re.compile(r"\d+ of \d+ in this filter")
    assert place.search(other.inner_text("body"))[0] == place.search(main_text(tab))[0]
    stranger.close()


def test_keys_move_through_the_filter_and_rest_while_typing(server, runs, tab):
    a, b = runs["stage1"].id, runs["stage2"].id
    go(tab, server.url("item", a=a, b=b, item="", flip="broken"))
    first = tab.page.locator("h1").inner_text()
    tab.page.locator("h1").click()
    tab.page.keyboard.press("j")
    tab.page.wait_for_function(
        "first => document.querySelector('h1').innerText != first", arg=first
    )
    second = tab.page.locator("h1").inner_text()
    assert query(tab, "item") == second
    tab.page.keyboard.press("n")
    tab.page.wait_for_function(
        "first => document.querySelector('h1').innerText != first", arg=second
    )
    tab.page.keyboard.press("k")
    tab.page.wait_for_function(
        "first => document.querySelector('h1').innerText == first", arg=second
    )
    # In a field of the same page, and in one of another, letters are letters.
    tab.page.get_by_role("combobox", name="Baseline").click()
    tab.page.keyboard.type("jnkph", delay=30)
    tab.page.keyboard.press("Escape")
    tab.page.locator("h1").click()
    assert tab.page.locator("h1").inner_text() == second
    assert tab.page.get_by_role("dialog").count() == 0
    tab.page.keyboard.press("h")
    tab.page.get_by_role("dialog").wait_for()
    tab.page.keyboard.press("Escape")
    visit(tab, server.url("flips", a=a, b=b), "Flips")
    tab.page.get_by_label("Search the texts").click()
    tab.page.keyboard.type("hjknp")
    tab.page.wait_for_timeout(400)
    assert tab.page.get_by_role("dialog").count() == 0


def test_a_selection_belongs_to_its_filter(server, runs, tab):
    """A table keeps the selected position; after a new filter that would be another item."""
    a, b = runs["stage1"].id, runs["stage2"].id
    go(tab, server.url("flips", a=a, b=b), "Flips")
    click_row(tab, 0)
    tab.page.wait_for_url(re.compile("/item"))
    tab.page.go_back()
    tab.page.wait_for_url(re.compile("/flips"))
    idle(tab)
    tab.page.get_by_role("button", name=re.compile("fixed")).click()
    tab.page.wait_for_function("new URL(location).searchParams.get('flip') == 'fixed'")
    idle(tab)
    tab.page.wait_for_timeout(300)
    assert "/flips" in tab.page.url


def test_a_click_anywhere_in_a_row_opens_a_run(server, runs, tab):
    go(tab, server.url("runs", view="list", q=runs["sink"].path.name), "Runs")
    box = tab.page.locator("[data-testid=stDataFrame]").first.bounding_box()
    tab.page.mouse.click(box["x"] + 300, box["y"] + 35 + 17)
    tab.page.wait_for_url(re.compile("/run[?]"))
    assert query(tab, "id") == runs["sink"].id
    tab.page.get_by_text("Settings that are not the defaults").wait_for()


def test_a_task_opens_its_flips_from_chart_and_table(server, runs, tab):
    address = server.url("compare", a=runs["stage1"].id, b=runs["stage2"].id)

    def chart():
        tab.page.locator(".rows a", has_text="ARC-Easy").click()

    def table():
        box = tab.page.locator("[data-testid=stDataFrame]").first.bounding_box()
        tab.page.mouse.click(box["x"] + 300, box["y"] + 35 * 3 + 17)

    for click in (chart, table):
        go(tab, address, "Compare")
        click()
        tab.page.wait_for_url(re.compile("/flips"))
        idle(tab)
        assert query(tab, "task") == "arc_easy"
        assert query(tab, "flip") == "broken~fixed"


def test_a_click_on_a_mask_cell_reads_it(server, runs, tab):
    go(tab, server.url("masks", regime="bidirectional:sink=1"), "Masks")
    plot = tab.page.locator(".js-plotly-plot .nsewdrag").last  # causal is left of it
    plot.wait_for()
    tab.page.wait_for_timeout(800)
    box = plot.bounding_box()
    side = min(box["width"], box["height"])  # cells are square, centred in the plot
    left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
    cell = side / 12
    tab.page.mouse.click(left + 5.5 * cell, top + 2.5 * cell)
    tab.page.get_by_text("Token 2,").wait_for()
    assert "causal does not see; bidirectional:sink=1 sees by looking ahead" in main_text(tab)
    assert "token 5" in main_text(tab)


def test_downloaded_records_are_the_ones_on_disk(server, runs, tab):
    a, b = runs["stage1"], runs["stage2"]
    go(tab, server.url("item", **chosen(runs)), "piqa/3")
    tab.page.get_by_text("Raw record").click()
    with tab.page.expect_download() as wait:
        tab.page.get_by_role("button", name=re.compile("JSON")).first.click()
    records = json.loads(Path(wait.value.path()).read_text(encoding="utf-8"))
    assert set(records) == {a.id, b.id}
    for run in (a, b):
        assert records[run.id]["ll"] == list(run.item("piqa", 3)["ll"])
    visit(tab, server.url("runs"), "Runs")
    with tab.page.expect_download() as wait:
        tab.page.get_by_role("button", name="CSV", exact=True).first.click()
    text = Path(wait.value.path()).read_text(encoding="utf-8")
    rows = {row["run"]: row for row in csv.DictReader(text.splitlines())}
    assert {run.id for run in runs.values()} <= set(rows)
    assert int(float(rows[a.id]["n"])) == len(a.items(["doc_id"]))


def test_an_address_made_by_clicking_shows_the_same_to_a_stranger(server, runs, browser, tab):
    """What is seen is in the address: pair, filter, mask, form. The Overview's switch: test_app_pages."""
    stranger = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    pair = {"a": runs["stage1"].id, "b": runs["sink"].id}

    def flip(page):
        page.get_by_role("button", name=re.compile("fixed")).click()
        page.wait_for_function("new URL(location).searchParams.get('flip') == 'fixed'")

    def mask(page):
        page.get_by_role("radio", name="Difference").click()
        page.wait_for_function("new URL(location).searchParams.get('view') == 'difference'")

    def form(page):
        page.get_by_role("textbox", name="Items per task").fill("7")
        page.keyboard.press("Enter")
        page.get_by_text("--limit 7").first.wait_for()

    whole, line = "[data-testid=stMain]", "[data-testid=stCode]"  # Launch also says free memory
    for name, act, what in (
        ("flips", flip, whole),
        ("masks", mask, whole),
        ("launch", form, line),
    ):
        open_it = go if name == "flips" else visit
        open_it(tab, server.url(name, **pair), HEADINGS[name])
        act(tab.page)
        idle(tab)
        stranger.goto(tab.page.url)
        stranger.wait_for_function(
            "([what, text]) => document.querySelector(what)?.innerText == text",
            arg=[what, tab.page.locator(what).first.inner_text()],
            polling=100,  # reading a whole page in every frame would slow it down
        )
        assert stranger.url == tab.page.url
    stranger.context.close()


# Words that stand in the window, and on the whole page, beside the sidebar's.
_COUNT = """() => {
    const walk = document.createTreeWalker(
        document.querySelector('[data-testid=stMain]'), NodeFilter.SHOW_TEXT);
    const seen = [0, 0];
    while (walk.nextNode()) {
        const range = document.createRange();
        range.selectNode(walk.currentNode);
        const box = range.getBoundingClientRect();
        if (!box.width || !box.height) continue;
        const n = walk.currentNode.textContent.split(/\\s+/).filter(w => /[\\p{L}\\p{N}]/u.test(w)).length;
        seen[1] += n;
        if (box.top < innerHeight) seen[0] += n;
    }
    return seen;
}"""


def test_the_overview_says_it_in_few_words(nursery, tmp_path, tab):
    """Of the committed runs, on a laptop's screen."""
    (tmp_path / "runs").mkdir()
    tab.page.set_viewport_size({"width": 1440, "height": 900})
    with serve(tmp_path / "runs", nursery) as own:
        go(tab, own.url(), HEADINGS[""])
        tab.page.locator(".b-hero .choice").first.wait_for()
        first, whole = tab.page.evaluate(_COUNT)
    assert 40 < first <= 120
    assert first < whole <= 450


def test_one_click_flips_the_overviews_item_at_once(server, tab):
    """The browser looks the answer up: no server is asked, and the address keeps the dials."""
    go(tab, server.url(), HEADINGS[""])
    said, picked = tab.page.locator(".b-hero .said"), tab.page.locator(".b-hero .picked .name")
    said.wait_for()
    assert "Now wrong" in said.inner_text()
    wrong = picked.inner_text()
    heard = tab.page.evaluate("window.heard")
    tab.page.get_by_role("switch", name="First token causal").check()
    assert picked.inner_text() != wrong
    assert "Right" in said.inner_text()
    took = tab.page.evaluate("""() => {
        const slider = document.querySelector('.b-hero input[name=layers]');
        const start = performance.now();
        for (let i = 0; i <= 10; i++) {
            slider.value = i;
            slider.dispatchEvent(new Event('input'));
        }
        slider.dispatchEvent(new Event('change'));
        return (performance.now() - start) / 11;
    }""")
    assert took < 200
    assert tab.page.evaluate("window.heard") == heard
    assert query(tab, "try") == "0.10.1.10.0"
    tab.page.reload()
    said.wait_for()
    assert tab.page.get_by_role("switch", name="First token causal").is_checked()
    tab.page.get_by_role("button", name="Next item", exact=True).click()
    assert query(tab, "try") == "1.10.0.0.0"


def test_from_the_overview_to_why_and_to_both_masks(server, tab):
    """One click to why the item flips, with both masks small; one more, and they are large."""
    tab.page.set_viewport_size({"width": 1440, "height": 900})
    go(tab, server.url(), HEADINGS[""])
    tab.page.locator(".b-hero .open").click()
    tab.page.wait_for_url(re.compile("/item"))
    tab.page.get_by_text("made causal again turns it back").wait_for()
    assert tab.page.locator(".b-pairs .b-mask").count() == 2
    tab.page.get_by_role("link", name="Open both masks").click()
    tab.page.wait_for_url(re.compile("/masks"))
    plots = tab.page.locator(".js-plotly-plot .nsewdrag")
    plots.nth(1).wait_for()
    idle(tab)
    for plot in plots.all():
        box = plot.bounding_box()
        assert box["y"] + min(box["width"], box["height"]) <= 900  # whole on a laptop's screen
