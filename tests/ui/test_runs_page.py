"""The Runs page: its tree, what a click opens, what is taken away; and the other tables' files."""

import pandas as pd
import pytest

from bidir_ui import runs_table, runs_tree
from bidir_ui.compare import compare_view
from bidir_ui.kit import widgets
from bidir_ui.reading import analysis
from bidir_ui.reading import pair as pair_view
from bidir_ui.reading.data import by_id, list_infos
from tests.app import open_page, pair, words
from tests.factory import make_run
from tests.lab_factory import make_sweep
from tests.report_runs import evaluation, make_finetune

PAGE = "pages/runs.py"


def labels(nodes) -> list[str]:
    return [node.text.strip() for node in nodes]


@pytest.fixture
def study(root):
    """Two models, one of them with a fine-tune of three seeds."""
    a, b = pair(root)
    pair(root, model="other/model")
    tuned = [make_finetune(root, "3B", seed=seed) for seed in range(3)]
    for seed, run in enumerate(tuned):
        evaluation(root, "bidirectional", 0.4 + seed / 10, trained=run, n_items=20)
    return a, b


def test_the_chosen_study_is_open_and_its_seeds_are_folded(study, monkeypatch):
    infos = list_infos()
    nodes = runs_tree.tree(infos, by_id(infos, study[0].id))
    assert [node.level for node in nodes if node.is_open] == [0]
    shown = labels(nodes)
    assert any(text.startswith("▸ model · 2 runs") for text in shown)
    assert sum("3 seeds" in text for text in shown) == 2, "fine-tunes, and their evaluations"
    assert len([node for node in nodes if node.run]) == 2, "stage 1 and 2 have one run each"


def test_opening_a_line_shows_its_seeds_in_order(study, monkeypatch):
    infos = list_infos()
    nodes = runs_tree.tree(infos, by_id(infos, study[0].id))
    group = next(node for node in nodes if "Stage 4" in node.text)
    put = {}
    monkeypatch.setattr(runs_tree.url, "put", lambda **values: put.update(values))
    runs_tree.toggle(group, nodes)
    monkeypatch.setattr(runs_tree.url, "get_list", lambda name: put[name])
    seeds = [node for node in runs_tree.tree(infos, None) if node.level == 2]
    assert [node.runs[0].train_seed for node in seeds] == [0, 1, 2]
    runs_tree.toggle(group, runs_tree.tree(infos, None))
    assert not [node for node in runs_tree.tree(infos, None) if node.level == 2]


def test_a_sweep_has_the_part_of_its_points(root):
    sweep = make_sweep(root, (), n_items=60)
    table = open_page(PAGE, view="list").dataframe[0].value
    assert dict(zip(table["run"], table["role"], strict=True)) == {sweep.id: "both"}


def test_many_runs_begin_as_a_tree_and_a_search_lists_them(root, monkeypatch):
    for seed in range(26):
        make_run(root, n_items=5, seed=seed, name=f"run{seed}")
    made, really = [], runs_table._row
    monkeypatch.setattr(runs_table, "_row", lambda *given: made.append(given) or really(*given))
    monkeypatch.setattr(pair_view, "MOST_OFFERED", 20)
    app = open_page(PAGE)
    assert not made, "26 runs in two lines; the CSV's rows are made when it is taken"
    assert len(app.sidebar.selectbox[0].options) == 20
    assert "newest 20 runs" in words(app)
    table = app.dataframe[0].value
    assert len(table) == 2, "one study, one arm of 26 runs"
    mean = table["acc"].iloc[1]
    flat = open_page(PAGE, view="list").dataframe[0].value
    assert len(flat) == 26
    assert mean == pytest.approx(flat["acc"].mean())
    assert len(open_page(PAGE, q="run25").dataframe[0].value) == 1


def test_numbers_are_numbers_and_texts_are_inert(root):
    a, b = pair(root)
    make_finetune(root, "3B")  # has no items
    table = open_page(PAGE).dataframe[0].value
    assert str(table["n"].dtype) == "Int64"
    infos = list_infos()
    result = analysis.compare(by_id(infos, a.id), by_id(infos, b.id))
    frame = compare_view.task_frame(result)
    assert len(frame) == 6
    assert frame["difference"].iloc[-1] == pytest.approx(result.macro.delta)
    assert all(pd.api.types.is_numeric_dtype(frame[name]) for name in frame.columns[1:-1])
    hostile = pd.DataFrame({"x|y": ["a|b", "![i](http://e)"], "n": [1.5, None]})
    markdown = widgets.markdown_of(hostile)
    assert markdown.splitlines()[1] == "| --- | ---: |"
    assert markdown.splitlines()[2] == r"| a\|b | 1.5 |"
    assert "![i](" not in markdown
    assert "http://" not in markdown


@pytest.mark.parametrize("page", ["runs", "compare", "flips"])
def test_every_table_can_be_copied_as_markdown(root, page):
    a, b = pair(root)
    app = open_page(f"pages/{page}.py", a=a.id, b=b.id)
    key = {"compare": "tasks"}.get(page, page)
    app.session_state[f"{key}-md"] = True
    app.run()
    assert not app.exception
    assert any(code.value.startswith("| ") for code in app.code)
