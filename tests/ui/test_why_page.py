"""The Item page explains an item: on request, as a job, from files, without a model."""

import pytest

from bidir_core import jobs
from bidir_core.common.files import write_json
from bidir_core.explain.why import sentences
from bidir_core.jobs import Job
from bidir_core.runs.layout import COMMITTED_RUNS
from bidir_core.runs.writer import RunWriter
from bidir_ui.overview import hero
from bidir_ui.reading import opens
from bidir_ui.reading.data import list_infos
from tests.app import fake_job, open_page, pair, words
from tests.explain.test_why import made
from tests.factory import make_run

ITEM = "piqa/3"
HOSTILE = '<img src="http://evil.example/x.png">'


def explain(root, run, *, item=ITEM, hash_=None, regime="bidirectional", longer=0):
    """A finished explanation as the command leaves it."""
    task, _, doc_id = item.partition("/")
    record = run.item(task, int(doc_id))
    result = made(single=[2], tokens=[0]) | {
        "task": task,
        "doc_id": int(doc_id),
        "doc_hash": hash_ or record["doc_hash"],
        "pieces": [HOSTILE, " b", " c", " d", " e"],
        "choices": ["x", "y"],
        "recorded": None,
        "n_prefix": record["n_prefix_tokens"][0] + longer,
    }
    result["lambda"]["points"] = [
        {"lambda": 0.01, "choice": 0, "lead": 1.0},
        {"lambda": 1.0, "choice": 1, "lead": -2.25},
    ]
    result["sentences"] = sentences(result)
    settings = {"model": run.model, "checkpoint": None, "task": task, "doc_id": int(doc_id)}
    settings |= {"regime": regime, "metric": "acc", "tasks": [task]}
    writer = RunWriter.create("lab", settings, root=root, name=f"why-{task}-{doc_id}", kind="why")
    write_json(writer.path / "why.json", {"schema": 1, **result})
    writer.finish(
        metrics={"n_items": 1, "tasks": {}}, cost={"seconds": 30.0, "computed_tokens": 9000}
    )
    return writer.path


def test_a_stored_explanation_is_shown_and_its_texts_are_inert(root):
    a, b = pair(root)
    explain(root, b)
    app = open_page("pages/item.py", a=a.id, b=b.id, item=ITEM)
    text = words(app)
    assert "Making layer 2 causal again alone turns the answer back." in text
    assert "token 0" in text
    bodies = [block.proto.body for block in app.get("html")]
    assert any("✓" in body and "b-strip" in body for body in bodies)
    assert not any(
        "<img src=" in body and "evil" in body.split("<img src=")[1][:40] for body in bodies
    )
    assert not [button for button in app.button if button.key == "why-start"]


def test_another_items_or_regimes_explanation_is_not_shown(root):
    a, b = pair(root)
    explain(root, b, longer=9)  # of a run whose prompt was repeated, say
    explain(root, b, item="piqa/4")
    explain(root, b, hash_="of other data")
    explain(root, b, regime="bidirectional:sink=1")
    (root / "lab" / "20260101-000000_why-piqa-3").mkdir(parents=True)
    torn = explain(root, b)
    (torn / "why.json").write_text("{")
    app = open_page("pages/item.py", a=a.id, b=b.id, item=ITEM)
    assert "turns the answer back" not in words(app)
    assert app.button(key="why-start")


def test_the_button_asks_once_and_starts_one_job(root, monkeypatch):
    monkeypatch.setattr("bidir_core.jobs.queue.ensure_worker", lambda device, folder: None)
    a, b = pair(root)
    app = open_page("pages/item.py", a=a.id, b=b.id, item=ITEM)
    app.button(key="why-start").click().run()
    assert not jobs.list_jobs()
    assert "Time: " in words(app)
    confirm = app.button(key="why-confirm")
    assert confirm.label.startswith("Fetch")  # the test's cache is empty
    confirm.click().run()
    (job,) = jobs.list_jobs()
    assert job.words == ("why", "--as-run", b.id, "--task", "piqa", "--doc-id", "3")
    assert job.estimate["memory_bytes"] > 0
    app = open_page("pages/item.py", a=a.id, b=b.id, item=ITEM)
    assert "Queued" in words(app)
    assert not [button for button in app.button if button.key == "why-start"]
    app.button(key=f"cancel-{job.id}").click().run()
    assert jobs.find_job(job.id).state == "cancelled"


def test_the_line_is_one_the_terminal_takes():
    from bidir_core.cli import build_parser
    from bidir_ui.item import why_view

    target = type("Target", (), {"id": "stage2/20260101-000000"})()
    record = {"task": "piqa", "doc_id": 3}
    for metric in ("acc", "acc_norm"):
        parsed = build_parser().parse_args(list(why_view.words(target, record, metric)))
        assert parsed.doc_id == 3
        assert getattr(parsed, "metric", "acc") == metric


def fake(root, b, **values) -> Job:
    line = ("why", "--as-run", b.id, "--task", "piqa", "--doc-id", "3")
    return fake_job(root, line, title="Why piqa/3", **values)


def test_a_failed_job_says_why_and_can_be_tried_again(root):
    a, b = pair(root)
    fake(root, b, stored_state="failed", error=f"no weights {HOSTILE}")
    app = open_page("pages/item.py", a=a.id, b=b.id, item=ITEM)
    assert "It could not be explained" in words(app)
    assert app.button(key="why-start")


def test_read_only_shows_results_and_starts_nothing(root, monkeypatch):
    a, b = pair(root)
    monkeypatch.setenv("BIDIR_READ_ONLY", "1")
    app = open_page("pages/item.py", a=a.id, b=b.id, item=ITEM)
    assert "read-only view" in words(app)
    assert not [button for button in app.button if (button.key or "").startswith("why-")]
    monkeypatch.delenv("BIDIR_READ_ONLY")
    explain(root, b)
    monkeypatch.setenv("BIDIR_READ_ONLY", "1")
    app = open_page("pages/item.py", a=a.id, b=b.id, item=ITEM)
    assert "turns the answer back" in words(app)


@pytest.mark.parametrize("there", [True, False])
def test_weights_that_are_not_here_are_said(root, tmp_path, there):
    if there:
        (tmp_path / "final").mkdir()
        (tmp_path / "final" / "config.json").write_text("{}")
    a, _b = pair(root)
    c = make_run(
        root,
        "stage4_postft_eval",
        n_items=40,
        regime="bidirectional",
        accuracy=0.5,
        seed=2,
        checkpoint=str(tmp_path / "final"),
    )
    app = open_page("pages/item.py", a=a.id, b=c.id, item=ITEM)
    assert ("weights are; they are not here" in words(app)) is not there
    assert bool([button for button in app.button if button.key == "why-start"]) is there


def test_two_causal_runs_have_nothing_to_explain(root):
    a = make_run(root, n_items=40, accuracy=0.7)
    c = make_run(root, n_items=40, accuracy=0.6, seed=4, name="again")
    app = open_page("pages/item.py", a=a.id, b=c.id, item=ITEM)
    assert "Why this answer" not in words(app)


def test_an_item_of_the_overview_says_why_without_a_job(root, monkeypatch):
    a, b = pair(root)
    scores = [[[[0, -300] if strength < 3 else [-300, 0] for strength in range(11)]] * 5] * 2
    item = {"model": b.model, "item": ITEM, "gold": 0, "scores": scores}
    monkeypatch.setattr(hero, "items", lambda: [{"model": b.model, "item": ITEM}, item])
    app = open_page("pages/item.py", a=a.id, b=b.id, item=ITEM)
    drawn = " ".join(block.proto.body for block in app.get("html"))
    assert "nothing left causal, strength 0: right answer 95 %" in drawn
    assert "first 2 layers causal, strength 1: right answer 5 %" in drawn
    assert app.button(key="why-start")


def test_ten_committed_items_are_explained_the_overviews_first_among_them(monkeypatch):
    monkeypatch.setenv("BIDIR_RUNS_DIR", str(COMMITTED_RUNS))
    infos = [info for info in list_infos() if info.kind == "why" and info.is_done]
    opened = [opens.results(info, list_infos()) for info in infos]
    items = {query["item"] for page, query in opened if page == "item"}
    first = hero.items()[0]["item"]
    assert len(items) >= 10
    assert first in items
    query = next(query for _, query in opened if query["item"] == first)
    app = open_page("pages/item.py", **query)
    assert "made causal again turns it back" in words(app)
    assert "Stage 4, 3B full · bidirectional" in words(app)  # repaired, among every run's answers
