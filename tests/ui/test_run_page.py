"""The Run page: what a run says of itself, where its results lead, and a run that is going on."""

from urllib.parse import parse_qs

import numpy as np
import pytest

from bidir_core.analyse import stats
from bidir_core.analyse.verdict import settled
from bidir_core.runs.layout import COMMITTED_RUNS
from bidir_ui.reading import opens
from bidir_ui.reading.data import by_id, list_infos
from tests.app import STAGE2, open_page, pair, words
from tests.attend_factory import make_attend
from tests.factory import make_run
from tests.lab_factory import SINKS, make_sweep
from tests.report_runs import make_finetune
from tests.ui.test_why_page import ITEM, explain

PAGE = "pages/run.py"


def links(app) -> dict[str, dict[str, list[str]]]:
    """Label -> query of the page's links."""
    elements = [element.proto for element in app.get("page_link")]
    return {x.label: parse_qs(x.query_string.removeprefix("?")) for x in elements}


def results(run) -> tuple[str, dict[str, str]]:
    infos = list_infos()
    info = by_id(infos, run.id)
    assert info is not None
    return opens.results(info, infos)


def test_a_run_says_what_is_not_the_default_and_how_to_make_it_again(root):
    _, b = pair(root, config={"limit": 500})
    app = open_page(PAGE, id=b.id)
    assert "Settings that are not the defaults" in words(app)
    (line,) = [code.value for code in app.code if "bidir_core eval" in code.value]
    assert "--regime bidirectional" in line
    assert "--limit 500" in line
    assert "--seed" not in line


def test_a_fine_tune_leads_to_its_evaluation_under_both_regimes(root):
    tuned = make_finetune(root, "3B")
    assert "not on this machine" in words(open_page(PAGE, id=tuned.id))
    (tuned.path / "final").mkdir(exist_ok=True)
    app = open_page(PAGE, id=tuned.id)
    launches = {k: q for k, q in links(app).items() if k.startswith("Evaluate this checkpoint")}
    assert [q["f.regime"] for q in launches.values()] == [["bidirectional"], ["causal"]]
    assert all(q["f.checkpoint"] == [str(tuned.path / "final")] for q in launches.values())
    assert "Recovery while training" in words(app)


def test_a_baseline_leads_to_no_run_of_other_prompts_and_starts_none_of_other_items(root):
    asked = {"limit": 6, "context": "none"}
    alone = make_run(root, n_items=30, config=asked)
    make_run(root, STAGE2, n_items=30, regime="causal:hide=0", config={"limit": 6})
    make_run(root, STAGE2, n_items=30, regime="bidirectional", config={"limit": 6})
    shown = links(open_page(PAGE, id=alone.id))
    assert not [label for label in shown if label.startswith(("Compare with", "Evaluate the same"))]


def test_a_baseline_leads_to_its_partner_or_to_its_start(root):
    alone = make_run(root, n_items=30, config={"limit": 6})
    started = links(open_page(PAGE, id=alone.id))["Evaluate the same items under bidirectional"]
    assert (started["stage"], started["f.limit"]) == (["stage2"], ["6"])
    partner = make_run(root, STAGE2, n_items=30, regime="bidirectional", config={"limit": 6})
    compared = links(open_page(PAGE, id=alone.id))["Compare with bidirectional"]
    assert (compared["a"], compared["b"]) == ([alone.id], [partner.id])


def test_a_sweep_answers_first_then_leads_on_and_says_how_it_was_made(root):
    sweep = make_sweep(root, SINKS, n_items=200)
    app = open_page(PAGE, id=sweep.id)
    assert not app.exception
    text = words(app)
    assert "5 points, each a regime on" in text
    assert text.index("The damage: bidirectional prefill moves") < text.index("Settings that are")
    shown = links(app)
    compared = shown["Compare causal with bidirectional"]
    assert compared["b"] == [f"{sweep.id}/points/bidirectional"]
    assert shown["Open in Lab"]["sweep"] == [sweep.id]
    assert shown["Launch the controls"]["stage"] == ["lab-controls"]
    (line,) = [code.value for code in app.code if "bidir_core lab" in code.value]
    assert line.endswith("--sweep sink=1,2,4")
    half = make_sweep(root, SINKS, n_items=60, state="cancelled")
    app = open_page(PAGE, id=half.id)
    assert f"lab --resume {half.id}" in " ".join(code.value for code in app.code)
    assert "The damage: bidirectional prefill moves" in words(app)


def test_results_lead_to_where_they_are_read(root):
    a, b = pair(root)
    why = explain(root, b)
    page, query = opens.results(*_of(why.name))
    assert (page, query["item"], query["a"], query["b"]) == ("item", ITEM, a.id, b.id)
    seen = make_attend(root)
    assert results(seen) == ("masks", {"show": "observed", "attend": seen.id})
    tuned = make_finetune(root, "3B")
    assert results(tuned) == ("run", {"id": tuned.id})
    assert results(b) == ("compare", {"a": a.id, "b": b.id})
    assert results(a) == ("run", {"id": a.id})


def _of(folder: str):
    infos = list_infos()
    return next(info for info in infos if info.id.endswith(folder)), infos


def test_a_run_of_scores_only_says_what_it_can_still_do(root):
    _, b = pair(root)
    (b.path / "items.parquet").unlink()
    text = words(open_page(PAGE, id=b.id))
    assert "It still counts in the Report" in text
    assert "cannot be paired" in text


@pytest.mark.parametrize(
    ("accuracy", "expected"), [(0.05, "Could stop now: settled"), (0.7, "Not settled")]
)
def test_a_running_run_shows_its_difference_so_far(root, accuracy, expected):
    common = {"n_items": 600, "tasks": ("piqa",)}
    make_run(root, accuracy=0.7, **common)
    going = make_run(
        root, STAGE2, regime="bidirectional", state="running", accuracy=accuracy, seed=5, **common
    )
    text = words(open_page(PAGE, id=going.id)).replace("\u00a0", " ")
    assert "n = 300" in text
    assert expected in text


def test_a_damaged_run_says_so(root):
    _, b = pair(root)
    (b.path / "metrics.json").write_text("{")
    app = open_page(PAGE, id=b.id)
    assert "The folder cannot be read" in words(app)


def test_looking_again_and_again_seldom_settles_what_is_no_difference():
    """Of 400 studies without a difference, looked at after every 20th of 2,000 items: the 95 %
    interval of a single look leaves out 0 in far more than 5 %, the one that is used does not."""
    rng = np.random.default_rng(0)
    moves = rng.choice([-1, 0, 1], p=[0.1, 0.8, 0.1], size=(400, 2000))
    ns = np.arange(1, 2001)
    means = moves.cumsum(1) / ns
    spread = 1.96 * np.sqrt((moves**2).cumsum(1) / ns - means**2) / np.sqrt(ns)
    single = wide = 0
    for row, reach in zip(means, spread, strict=True):
        low, high = row - reach, row + reach
        looks = [stats.Estimate(row[n], low[n], high[n], n + 1) for n in range(99, 2000, 20)]
        single += any(look.excludes_zero for look in looks)
        wide += any(stats.anytime(look).excludes_zero for look in looks)
    assert single > 60
    assert wide <= 20
    assert settled(stats.Estimate(-0.2, -0.24, -0.16, 500))
    assert not settled(stats.Estimate(-0.2, -0.24, -0.16, 60))


def test_a_recommendation_says_what_it_recommends_and_leads_to_its_test(monkeypatch):
    monkeypatch.setenv("BIDIR_RUNS_DIR", str(COMMITTED_RUNS))
    app = open_page(PAGE, id="lab/20261130-004852_recommend-smollm2")
    assert "leave the first 19 of 30 layers causal (bidirectional:layers=19-)" in words(app)
    assert "revision" not in words(app)  # the settings are those that are not the defaults
    query = links(app)["Evaluate it under bidirectional:layers=19-"]
    assert query["f.regime"] == ["bidirectional:layers=19-"]
    assert any("bidir_core recommend --model" in code.value for code in app.code)
