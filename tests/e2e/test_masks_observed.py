"""Observed attention in a real browser: opens in time, and what is clicked or hovered is read."""

import pytest

from tests.attend_factory import make_attend
from tests.e2e.server import IDLE
from tests.e2e.test_budgets import opening, within

TOTAL, LAYERS, HEADS = 256, 30, 9


@pytest.fixture(scope="module")
def run(runs, runs_root):
    """As large as the embedded model's observation of a 256-token prompt."""
    return make_attend(
        runs_root,
        n_prefix=240,
        n_total=TOTAL,
        n_layers=LAYERS,
        n_heads=HEADS,
        written=[15, 20],
        pieces=[f" word{i}" for i in range(TOTAL)],
    )


@pytest.mark.alone
def test_a_256_token_prompt_opens_in_time(run, server, tab):
    url, picture = server.url("masks", attend=run.id), ".st-key-attend-picture .nsewdrag"
    within("open masks, observed", 2.5, lambda _: opening(tab, url, picture))


def test_clicks_and_hover_read_heads_and_cells(run, server, tab):
    tab.page.goto(server.url("masks", attend=run.id))
    grid = tab.page.locator("[class*=st-key-attend-grid] .nsewdrag").last  # bidirectional
    grid.wait_for()
    tab.page.wait_for_selector(IDLE)
    tab.page.wait_for_timeout(400)
    grid.scroll_into_view_if_needed()
    box = grid.bounding_box()
    tab.page.mouse.click(
        box["x"] + box["width"] * 6.5 / HEADS, box["y"] + box["height"] * 20.5 / LAYERS
    )
    tab.page.wait_for_function(
        "['layer', 'head'].map(name => new URL(location).searchParams.get(name)).join() == '20,6'",
    )
    tab.page.wait_for_selector(IDLE)
    tab.page.wait_for_timeout(800)
    plot = tab.page.locator(".st-key-attend-picture .nsewdrag").last  # bidirectional
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    side = min(box["width"], box["height"])  # cells are square, centred in the plot
    left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
    # Above 160 tokens every second row and column can be clicked.
    x, y = left + 200.5 * side / TOTAL, top + 100.5 * side / TOTAL
    tab.page.mouse.move(x, y)
    hover = tab.page.locator(".st-key-attend-picture .hoverlayer").last
    hover.get_by_text("word100").wait_for()  # tokens have no labels here, but names
    assert "word200" in hover.text_content()
    tab.page.mouse.click(x, y)
    tab.page.get_by_text("Token 100,").wait_for()
    text = tab.page.locator("[data-testid=stMain]").inner_text()
    assert "token 200" in text
    assert "may, looking ahead" in text
    assert not tab.unexpected_errors()
    assert not tab.foreign()
