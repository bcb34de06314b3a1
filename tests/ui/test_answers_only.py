"""A point that keeps its answers without their scores can still be read item by item."""

from __future__ import annotations

from bidir_core.runs.find import find_run
from bidir_core.runs.layout import COMMITTED_RUNS
from bidir_ui.item import item_view


def test_an_item_without_scores_is_told_by_its_answers() -> None:
    points = "lab/20261130-084150_controls-smollm2/points"
    names = ("causal", "bidirectional_self-2")
    a, b = (find_run(f"{points}/{name}", [COMMITTED_RUNS]).item("piqa", 3) for name in names)
    assert a is not None
    assert b is not None
    assert a["ll"] is None
    assert "Only the answers are kept" in str(item_view.sentence(a, b, "acc"))
    assert "right answer" in str(item_view.choices(a, a, b, "pred", "one", "other"))
