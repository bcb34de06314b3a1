"""The Item page as a workbench: which item opens, both masks, and rescoring in place."""

from types import SimpleNamespace

import pytest

from bidir_core.analyse.flips import flips
from bidir_core.jobs import playground
from bidir_core.jobs.playground import Answer
from bidir_core.runs.find import find_run
from bidir_core.runs.layout import COMMITTED_RUNS
from bidir_ui.item import item_view, rescore_view
from bidir_ui.item.item_view import Scale
from tests.app import open_page, pair, words

PAGE = "pages/item.py"
MODEL = "smollm2-135m-instruct"


def test_without_an_id_the_largest_broken_flip_opens(root):
    a, b = pair(root, n_items=100)
    frame = flips(a, b)
    broken = frame[frame["flip"] == "broken"]
    worst = broken.loc[broken["margin_change"].abs().idxmax(), "item_id"]
    app = open_page(PAGE, a=a.id, b=b.id)
    assert app.query_params["item"] in (worst, [worst])
    assert "▼ Broken" in words(app)


def test_the_likelier_choice_is_further_right():
    scale = Scale.of([[-3.0, -1.0], [-2.0, float("-inf")]])
    places = [str(scale.dot(ll, "blue")) for ll in (-3.0, -2.0, -1.0)]
    for place, left in zip(places, ("0.0", "50.0", "100.0"), strict=True):
        assert f"left:{left}%" in place
    assert "left:0.0%" in str(scale.dot(float("-inf"), "blue"))


@pytest.fixture
def worker(monkeypatch):
    """A model that is loaded, pretended: it answers at once that all comes back."""
    requests = []

    def rescore(**request) -> str:
        requests.append(request)
        return str(len(requests))

    ll = {"causal": [-1.0, -2.0], "regime": [-4.0, -2.0], "changed": [-1.5, -2.5]}
    fake_worker = SimpleNamespace(
        state="ready",
        model=MODEL,
        checkpoint="",
        started=1.0,
        facts={"n_layers": 4},
        rescore=rescore,
        answer=lambda name: Answer(
            ("bidirectional",), state="done", result={"ll": ll, "pieces": ["x"], "n_prefix": 1}
        ),
    )
    monkeypatch.setattr(playground, "shared", lambda: fake_worker)
    return requests


def opened(**query):
    app = open_page(PAGE, **query)
    app.session_state["try"] = True
    return app.run()


def test_what_is_clicked_is_left_causal(root, worker):
    a, b = pair(root)
    app = opened(a=a.id, b=b.id, item="piqa/3", ct="0~2", cl="1~99")
    assert not app.exception
    assert worker[-1]["causal_tokens"] == [0, 2]
    assert worker[-1]["causal_layers"] == [1]
    assert worker[-1]["regime"] == "bidirectional"
    assert worker[-1]["contexts"] == b.item("piqa", 3)["contexts"]
    text = words(app)
    assert "With these left causal the answer is back: 0." in text
    n = len(worker)
    app.run()
    assert len(worker) == n, "nothing changed, so nothing is asked again"


def test_an_edited_prompt_is_what_is_scored(root, worker):
    a, b = pair(root)
    app = opened(a=a.id, b=b.id, item="piqa/3")
    app.text_area[0].set_value("Another question?").run()
    assert worker[-1]["contexts"] == ["Another question?"]


def test_nothing_is_loaded_or_asked_before_it_is_opened_or_in_a_read_only_view(
    root, worker, monkeypatch
):
    a, b = pair(root)
    open_page(PAGE, a=a.id, b=b.id, item="piqa/3")
    assert not worker
    monkeypatch.setenv("BIDIR_READ_ONLY", "1")
    app = opened(a=a.id, b=b.id, item="piqa/3")
    assert "Try it" not in str([box.label for box in app.expander])
    assert not worker


def test_a_token_as_a_label_is_no_markdown():
    hostile = "![x](http://evil.test/a) **b** `c` :red[d] <img> $e$ www.evil.test"
    shown = rescore_view.inert_label(hostile, 200)
    assert not set("*_`[]<>:$\\") & set(shown)
    assert "www." not in shown
    assert rescore_view.inert_label(" Paris") == "␣Paris"


# A point that keeps its answers without their scores can still be read item by item


def test_an_item_without_scores_is_told_by_its_answers() -> None:
    points = "lab/20261130-084150_controls-smollm2/points"
    names = ("causal", "bidirectional_self-2")
    a, b = (find_run(f"{points}/{name}", [COMMITTED_RUNS]).item("piqa", 3) for name in names)
    assert a is not None
    assert b is not None
    assert a["ll"] is None
    assert "Only the answers are kept" in str(item_view.sentence(a, b, "acc"))
    assert "right answer" in str(item_view.choices(a, a, b, "pred", "one", "other"))
