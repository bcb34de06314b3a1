"""Recovery curves on the Compare page: read from fine-tunes, seeds of an arm together."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from bidir_ui.compare import compare_view
from bidir_ui.reading import data
from tests.report_runs import REPAIRED, make_finetune, two_by_two

ROOT = Path(__file__).parents[2]


def test_seeds_of_an_arm_are_one_curve_of_their_mean(root):
    first, second = (make_finetune(root, "3B", seed=seed) for seed in (0, 1))
    curve = second.path / "curve.jsonl"
    higher = curve.read_text().replace('"acc": 0.4,', '"acc": 0.6,')  # at step 0
    curve.write_text(higher + '{"step": 9, "evals": {"causal": {"ac')
    curves = {(c.objective, c.regime): c for c in compare_view.read(data.list_infos(), first.model)}
    assert set(curves) == {("3B", "causal"), ("3B", "bidirectional")}
    assert curves["3B", "bidirectional"].n_seeds == 2
    assert curves["3B", "bidirectional"].means == pytest.approx({0: 0.5, 200: 0.45, 400: 0.5})


def test_other_models_and_runs_without_evaluations_are_left_out(root):
    run = make_finetune(root, "3C", evals=False)
    assert compare_view.read(data.list_infos(), run.model) == []
    make_finetune(root, "3B")
    assert compare_view.read(data.list_infos(), "another") == []


def test_the_page_shows_a_panel_a_regime_and_the_table(root):
    two_by_two(root, REPAIRED)
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).run()
    app.switch_page("pages/compare.py").run()
    assert not app.exception
    text = " ".join(str(block.value) for block in app.get("html"))
    assert "Under bidirectional prefill" in text
    assert "With the causal mask" in text
    assert "Evaluated" in text
