"""Recovery curves on the Compare page: read from fine-tunes, seeds of an arm together."""

import pytest

from bidir_core.report.charts import table_frame
from bidir_ui.compare import compare_view
from bidir_ui.reading import data
from tests.app import open_page, words
from tests.factory import unsealed
from tests.report_runs import REPAIRED, make_finetune, two_by_two


def test_seeds_of_an_arm_are_one_curve_of_their_mean(root):
    first, second = (make_finetune(root, "3B", seed=seed) for seed in (0, 1))
    curve = unsealed(second).path / "curve.jsonl"
    higher = curve.read_text().replace('"acc": 0.4,', '"acc": 0.6,')  # at step 0
    curve.write_text(higher + '{"step": 9, "evals": {"causal": {"ac')
    frame = table_frame(compare_view.curves(data.list_infos(), first.model))
    ahead = frame[frame["Regime"] == "bidirectional"].set_index("Step")
    assert set(ahead["Seeds"]) == {2}
    assert ahead["Macro acc"].to_dict() == pytest.approx({0: 0.5, 200: 0.45, 400: 0.5})


def test_other_models_and_runs_without_evaluations_are_left_out(root):
    run = make_finetune(root, "3C", evals=False)
    assert not compare_view.curves(data.list_infos(), run.model)
    make_finetune(root, "3B")
    assert not compare_view.curves(data.list_infos(), "another")


def test_the_page_shows_a_panel_a_regime_and_the_table(root):
    two_by_two(root, REPAIRED)
    app = open_page("pages/compare.py")
    assert all(
        text in words(app) for text in ("Under bidirectional prefill", "With the causal mask")
    )
    app.session_state["recovery-fold"] = True
    app.run()
    assert "Seeds low to high low" in app.dataframe[-1].value.columns
