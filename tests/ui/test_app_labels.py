"""What the pages call things: labels that tell runs apart, signs, names that are not found, links."""

import re

import pytest

from bidir_ui.kit import fmt
from bidir_ui.reading import data
from tests.app import STAGE2, open_page, pair, words
from tests.attend_factory import make_attend
from tests.factory import make_run


def markup(app) -> str:
    return " ".join(block.proto.body for block in app.get("html"))


# --- signs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("by -4.0 points (95 % CI -5.1 to +0.2)", "by −4.0 points (95 % CI −5.1 to +0.2)"),
        ("[-1, -.5]", "[−1, −.5]"),
        ("rows=0-5, layers 3-7", "rows=0-5, layers 3-7"),
        ("stage1/20260101-000000_3B-2", "stage1/20260101-000000_3B-2"),
        ("eval --limit 5 --k -", "eval --limit 5 --k -"),
    ],
)
def test_core_sentences_get_a_real_minus_and_ranges_and_ids_stay(text, wanted):
    assert fmt.minus(text) == wanted


# --- kinds and links --------------------------------------------------------------------------------


def test_evaluations_are_not_what_was_swept_or_looked_at(root):
    a, b = pair(root)
    make_attend(root)
    for kind in ("lab", "why"):
        make_run(root, "lab", n_items=10, facts={"kind": kind})
    assert len(open_page("pages/runs.py").dataframe[0].value) == 5
    shown = open_page("pages/runs.py", kind="evaluations").dataframe[0].value
    assert set(shown["run"]) == {a.id, b.id}


def test_an_item_links_to_where_a_model_looked(root):
    a, b = pair(root)
    run = make_attend(root, item="piqa/3")
    make_attend(root, item="piqa/7")

    def observed_links(item: str) -> list[str]:
        links = open_page("pages/item.py", a=a.id, b=b.id, item=item).get("page_link")
        return [x.proto.query_string for x in links if "Observed attention" in x.proto.label]

    (query,) = observed_links("piqa/3")
    assert f"attend={run.id}".replace("/", "%2F") in query.replace("/", "%2F")
    assert "show=observed" in query
    assert not observed_links("piqa/1")


# --- labels that tell runs apart -----------------------------------------------------------------


def test_every_runs_answer_names_what_differs(root):
    a, b = pair(root)
    make_run(root, n_items=40, facts={"dtype": "bfloat16"})
    make_run(root, n_items=40, name="again", facts={"dtype": "bfloat16"})
    body = markup(open_page("pages/item.py", a=a.id, b=b.id, item="piqa/3"))
    rows = re.findall(r"<tr><td[^>]*>(?:<b>)?(Stage[^<]*)", body[body.index("Every run") :])
    assert len(rows) == len(set(rows)) == 4
    assert sum("bfloat16" in row for row in rows) == 2
    assert sum("again" in row for row in rows) == 1


def test_runs_alike_in_all_else_are_told_apart_by_date_or_folder(root):
    for _ in range(3):
        make_run(root, n_items=10)
    runs = data.list_infos()
    extra = data.apart(runs, lambda run: "one label")
    assert len(set(extra.values())) == 3
    assert not any(data.apart(runs[:1], lambda run: "one label").values())


def test_menus_say_what_distinguishes_first_and_the_whole_below(root):
    a, _ = pair(root, config={"limit": 500})
    sink = make_run(root, STAGE2, n_items=40, regime="bidirectional:sink=1", config={"limit": 500})
    app = open_page("pages/compare.py", a=a.id, b=sink.id)
    assert app.sidebar.selectbox[1].options[0] == "sink=1 · limit 500"
    assert "Stage 2 · bidirectional:sink=1 · limit 500 · float32" in words(app)


def test_undecided_is_explained_where_it_is_said(root):
    a, _ = pair(root)
    near = make_run(root, STAGE2, n_items=40, regime="bidirectional:sink=1", accuracy=0.68, seed=1)
    text = words(open_page("pages/compare.py", a=a.id, b=near.id)).replace("\xa0", " ")
    assert "undecided, needs about n = " in text
    assert "in the same mix of tasks" in text
    app = open_page("pages/compare.py", a=a.id, b=near.id)
    app.button(key="help").click().run()
    assert "How much more 3B gains over its control" in words(app)
