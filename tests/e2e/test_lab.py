"""The Lab page in a browser: a click on a curve or on the map of layers chooses that point."""

import shutil

import pytest

from bidir_core.runs.find import list_runs
from tests.e2e.server import IDLE, serve

pytest.importorskip("playwright")


def test_points_and_cells_can_be_clicked(tmp_path, seeds, nursery, tab) -> None:
    root = tmp_path / "runs"
    shutil.copytree(seeds.sweep, root)
    (sweep,) = list_runs([root])
    page = tab.page
    with serve(root, nursery) as server:
        page.goto(server.url("lab", sweep=sweep.id))
        page.wait_for_selector(IDLE)
        marks = page.locator(".js-plotly-plot").first.locator(".scatterlayer .points path")
        marks.nth(1).wait_for()
        marks.nth(1).click(force=True)
        page.wait_for_url("**point=bidirectional_sink-1")
        page.wait_for_selector(IDLE)
        page.get_by_text("sink=1", exact=False).first.wait_for()
        drag = page.locator(".js-plotly-plot:has(.heatmaplayer)").first.locator(".nsewdrag").first
        drag.scroll_into_view_if_needed()
        box = drag.bounding_box()
        # Thirty layers side by side, one row: the cell that starts at layer 10.
        page.mouse.click(box["x"] + box["width"] * 10.5 / 30, box["y"] + box["height"] / 2)
        page.wait_for_url("**point=bidirectional_layers-10-14")
        page.wait_for_selector(IDLE)
        page.get_by_role("link", name="Flips against causal").click()
        page.wait_for_url("**/flips?**")
        page.locator("[data-testid=stDataFrame] canvas").first.wait_for()
        assert "bidirectional_layers-10-14" in page.url
    assert not tab.foreign()
    assert not tab.unexpected_errors()
