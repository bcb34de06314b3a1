"""The app with an imported run: listed as such, paired with ours, drawn without token counts."""

import json

import pytest
from streamlit.testing.v1 import AppTest

from bidir_core.analyse import selection
from bidir_core.report.scorecard import scorecard
from bidir_core.runs.find import list_runs
from bidir_core.runs.lm_eval_export import export_run
from bidir_core.runs.lm_eval_import import import_results
from bidir_core.runs.run import Run
from bidir_ui.reading import data
from tests.app import STAGE2, open_page, words
from tests.factory import make_run


def imported_from(run: Run, folder, **options) -> Run:
    """The same scores as lm-eval would have written them: nothing said about who made them."""
    files, _ = export_run(run, folder)
    results = json.loads(files[-1].read_text())
    del results["bidir_core"]
    files[-1].write_text(json.dumps(results))
    return Run(import_results(folder, **options).path)


@pytest.fixture
def both(root, tmp_path):
    """An imported causal run and our bidirectional one of the same items."""
    causal = make_run(tmp_path / "elsewhere", n_items=60, accuracy=0.7)
    theirs = imported_from(causal, tmp_path / "out", name="theirs")
    candidate = make_run(root, STAGE2, n_items=60, regime="bidirectional", accuracy=0.4, seed=1)
    return theirs, candidate


def open_pair(page: str, a: Run, b: Run, **query: str) -> AppTest:
    app = open_page(page, a=a.id, b=b.id, **query)
    text = words(app)
    assert "could not be read" not in text
    return app


def test_runs_lists_it_and_finds_it_by_kind(both):
    theirs, candidate = both
    table = open_pair("pages/runs.py", *both, kind="imported").dataframe[0].value
    assert table["run"].tolist() == [theirs.id]
    assert table["state"].tolist() == ["● imported"]
    table = open_pair("pages/runs.py", *both, kind="evaluations").dataframe[0].value
    assert table["run"].tolist() == [candidate.id]


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("page", ["pages/compare.py", "pages/flips.py", "pages/item.py"])
def test_pages_pair_it_with_ours(both, page, swap):
    text = words(open_pair(page, *(both[::-1] if swap else both), item="winogrande/3"))
    assert "imported from lm-eval 0.4.13" in text
    if page == "pages/compare.py":
        assert "not recorded there, so not checked: tokenizer, BOS token" in text
        assert "By prefix length, tokens" in text  # counted by our run
    if page == "pages/item.py":  # tokens are our run's
        assert "prefix ends ·" in text
        assert "No token-level numbers: a run was imported" in text
        assert "nan" not in text


@pytest.mark.parametrize("page", ["pages/compare.py", "pages/flips.py", "pages/item.py"])
def test_pages_pair_two_imports(both, page):
    theirs, _ = both
    text = words(open_pair(page, theirs, theirs, item="winogrande/3"))
    assert "By prefix length" not in text
    if page == "pages/item.py":
        assert "tokens not recorded" in text


def test_it_is_no_default_and_not_in_the_scorecard(both, root):
    theirs, candidate = both
    ours = make_run(root, n_items=60, accuracy=0.7)
    runs = data.list_infos()
    assert [run.id for run in selection.default_pair(runs) if run] == [ours.id, candidate.id]
    (row,) = scorecard(list_runs())
    assert row.hurt is not None
    assert row.hurt.runs == (ours.id, candidate.id)
    assert theirs.id not in row.hurt.runs
