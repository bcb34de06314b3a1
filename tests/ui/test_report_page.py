"""The Report page in its states, without a browser."""

import io
import json
import os
import re
import zipfile
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from bidir_core.common.errors import UserError
from bidir_core.report import report as core
from bidir_core.runs.find import list_runs
from bidir_ui import report_view
from tests.app import STAGE2, open_page, pair, words
from tests.factory import make_run
from tests.lab_factory import accuracy, make_sweep
from tests.report.test_scorecard import OPENED
from tests.report.test_scorecard import opened as opened_from
from tests.report_runs import report
from tests.ui.test_app_labels import markup

MODEL = "smollm2-135m-instruct"
REGIMES = ("causal", "bidirectional")


@pytest.fixture(scope="module")
def full_report(repaired):
    return report(repaired)


@pytest.fixture
def two(root):
    """Stages 1 and 2, small."""
    return pair(root)


@pytest.fixture
def study(repaired, monkeypatch, root):
    monkeypatch.setenv("BIDIR_RUNS_DIR", str(repaired))
    return repaired


def opened(**query: str):
    return open_page("pages/report.py", **query)


def headings(app) -> list[str]:
    return re.findall(r'<h2 class="b-h2 b-rule">(.*?)</h2>', markup(app))


def labels(app) -> list[str]:
    return [button.proto.label for button in app.get("download_button")]


# --- the five states ---------------------------------------------------------------------------


def test_empty_says_what_to_do(root):
    make_run(root, n_items=20, state="failed")
    text = words(opened())
    assert "No finished evaluation yet" in text
    assert "python -m bidir_core eval" in text


def test_ready_shows_the_answer_and_offers_the_rest(study, full_report):
    app = opened()
    text = words(app)
    assert "It hurts. Without adaptation" in text
    assert "What is undecided" in text
    assert headings(app) == ["Appendix"]
    assert len(re.sub(r"(?s)<style.*?</style>|<[^>]*>", " ", markup(app)).split()) <= 800
    assert labels(app) == ["HTML", "Markdown", "PNG", "CSV tables"]
    command, site = [block.value for block in app.code]
    assert site == "python -m bidir_core share --out DIR"
    assert all(run.id in command for run in full_report.study.all_runs)
    appendix = [section for section in full_report.sections if not section.is_front]
    app = opened(sections="~".join([*(section.key for section in appendix), "flips"]))
    first, *middle, last = headings(app)
    assert (first, last) == ("Appendix", "The Items Behind the Numbers: Flips")
    assert middle == [section.heading for section in appendix]
    assert len(app.get("plotly_chart")) == 1


def test_the_chosen_pair_is_reported_on(repaired, root, monkeypatch):
    monkeypatch.setenv("BIDIR_RUNS_DIR", os.pathsep.join(map(str, (root, repaired))))
    few = {"n_items": 200, "config": {"limit": 40}, "texts": False}
    a = make_run(root, accuracy=0.5, **few)
    b = make_run(root, STAGE2, accuracy=0.4, regime="bidirectional:sink=1", **few)
    assert "bidirectional:sink=1 prefill" in words(opened(a=a.id, b=b.id))
    assert "n = 1,000 items" in words(opened()).replace("\xa0", " ")  # else the fullest set


def test_without_a_chosen_pair_it_is_about_the_model_that_the_overview_begins_with(root):
    """Here its pair are points of a sweep."""
    pair(root, model="other/model")
    make_sweep(root, ["bidirectional:sink=1"], n_items=600, world=lambda p: accuracy(p, harm=0.3))
    assert "SmolLM2 135M loses" in words(open_page())
    app = opened()
    text = words(app)
    assert "Bidirectional prefill and smollm2-135m-instruct" in text
    assert "It hurts" in text
    assert "stage 2 (sink=1)" in text
    assert app.sidebar.selectbox[0].value.endswith("points/causal")


def test_it_tells_of_the_layers_that_the_overview_tells_of(root):
    pair(root, model="other/model")
    make_sweep(root, [*OPENED, "bidirectional:sink=1"], n_items=900, world=opened_from)
    overview = words(open_page())
    back = re.search(r"leaving the first 2 layers causal gives back (\d+\.\d)", overview)[1]
    text = words(opened())
    assert f"with the first 2 layers causal, +{back} points" in text
    assert "the half of the items that did not choose how many" in text


def flips_link(app) -> dict[str, list[str]]:
    """The query of the link to the Flips page below the report."""
    links = [parse_qs(link.proto.query_string) for link in app.main.get("page_link")]
    (query,) = [query for query in links if "flip" in query]
    return query


def test_the_link_to_the_flips_is_of_the_runs_reported_on(study, full_report):
    reported = full_report.study
    base = {r: next(iter(reported.runs(reported.base, r).values())).id for r in REGIMES}
    other = next(run.id for run in reported.all_runs if run.id not in base.values())
    query = flips_link(opened(a=base["causal"], b=other, sections="flips"))
    assert query["a"] == [base["causal"]]
    assert query["b"] == [base["bidirectional"]]


def test_one_evaluation_makes_a_report(root):
    make_run(root, n_items=20)
    app = opened(sections="flips")
    assert "Not run" in words(app)
    assert labels(app)
    assert "b" not in flips_link(app)


def test_what_was_left_out_is_said(two, root):
    assert "left out" not in words(opened())
    make_run(root, n_items=20, config={"limit": 4})
    assert "1 finished run left out" in words(opened())


def test_runs_that_make_no_report_say_why_and_leave_the_choice(root):
    make_run(root, n_items=20)
    bad = make_run(root, STAGE2, n_items=20, regime="bidirectional", state="failed")
    app = opened(runs=bad.id)
    assert "a report needs at least one finished evaluation" in words(app)
    assert app.multiselect(key="report-runs").value == [bad.id]


def test_a_model_without_finished_runs_says_which_have_some(root):
    a = make_run(root, n_items=20, model="other", state="failed")
    make_run(root, n_items=20)
    text = words(opened(a=a.id))
    assert "there are no finished runs of 'other'" in text
    assert MODEL in text


@pytest.mark.parametrize(
    "query",
    [{"runs": "stage1_vanilla_eval/19990101-000000"}, {"a": "stage1_vanilla_eval/19990101-000000"}],
)
def test_an_unknown_run_is_not_found(two, query):
    app = opened(**query)
    assert "Run not found" in words(app)
    assert not headings(app)
    if "runs" in query:  # it stays in the address whatever the sidebar says: a way out of it
        app.button(key="report-fullest").click().run()
        assert headings(app)


# --- choosing ------------------------------------------------------------------------------------


def test_sections_are_in_the_url(study):
    app = opened(sections="macro~cost")
    assert headings(app) == ["Appendix", "Macro Accuracy by Stage", "Cost"]
    text = words(opened(sections="macro~nonsense"))
    assert "Section not found" in text
    assert "nonsense" in text


def test_my_choice_starts_with_the_fullest_set(two):
    app = opened()
    app.segmented_control(key="url:runs").set_value("mine").run()
    assert set(app.multiselect(key="report-runs").value) == {run.id for run in two}
    app.multiselect(key="report-runs").set_value([]).run()  # nothing chosen: the fullest set again
    assert "runs" not in app.query_params
    assert headings(app)


def test_runs_are_in_the_url(study):
    base = [run for run in list_runs([study]) if run.stage.startswith(("stage1", "stage2"))]
    app = opened(runs="~".join(run.id for run in base), sections="artifacts~macro")
    assert app.multiselect(key="report-runs").value == [run.id for run in base]
    assert "stage 4" not in words(app)
    app.multiselect(key="report-runs").set_value([base[0].id]).run()
    assert app.query_params["runs"] in (base[0].id, [base[0].id])


def test_the_measure_of_the_sidebar_counts(two):
    assert "--metric acc_norm" in opened(metric="acc_norm").code[0].value


# --- what it costs, and what it lets in -------------------------------------------------------


def test_a_report_is_computed_once(two, monkeypatch):
    calls = []
    real = core.build_report
    monkeypatch.setattr(core, "build_report", lambda *a, **k: calls.append(1) or real(*a, **k))
    report_view._report.clear()
    app = opened()
    app.run()
    opened(sections="cost")
    assert len(calls) == 1


def test_no_html_file_is_made_before_it_is_asked_for(two, monkeypatch):
    monkeypatch.setattr(report_view.html_page, "page", lambda *a: pytest.fail("made too early"))
    assert labels(opened())


# --- the folder for a paper ----------------------------------------------------------------------


def test_the_paper_is_one_zip_made_on_request(study, full_report, monkeypatch):
    monkeypatch.setenv("BIDIR_READ_ONLY", "1")
    before = contents(study)
    app = opened()
    assert "report-paper-zip" not in app.session_state
    app.button(key="report-paper").click().run()
    assert not app.exception
    (button,) = [
        b.proto for b in app.get("download_button") if b.proto.label.startswith("Download (")
    ]
    assert not button.disabled
    with zipfile.ZipFile(io.BytesIO(app.session_state["report-paper-zip"][1])) as archive:
        assert archive.testzip() is None
        files = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    assert {"numbers.tex", "claims.json", "tables/macro.tex", "tables/macro.csv"} <= set(files)
    for figure in ("forest", "ladder"):
        assert files[f"figures/{figure}.pdf"].startswith(b"%PDF")
        assert b"<svg" in files[f"figures/{figure}.svg"]
    assert json.loads(files["claims.json"])["claims"]
    command = json.loads(files["manifest.json"])["command"]
    assert all(run.id in command for run in full_report.study.all_runs)
    assert contents(study) == before


def test_the_site_is_one_zip_made_on_request(two, root, monkeypatch):
    monkeypatch.setenv("BIDIR_READ_ONLY", "1")
    before = contents(root)
    app = opened()
    assert "report-site-zip" not in app.session_state
    app.button(key="report-site").click().run()
    assert not app.exception
    assert labels(app)[-1].startswith("Download (")
    with zipfile.ZipFile(io.BytesIO(app.session_state["report-site-zip"][1])) as archive:
        names = {name.split("/", 1)[1] for name in archive.namelist()}
    assert {"index.html", "manifest.json"} < names
    assert any(name.startswith("items/") for name in names)
    assert contents(root) == before


def test_a_paper_that_cannot_be_made_says_why(two, monkeypatch):
    def fail(*args, **options):
        raise UserError("the figures of --paper need matplotlib")

    monkeypatch.setattr("bidir_core.report.paper.zip_paper", fail)
    app = opened()
    app.button(key="report-paper").click().run()
    assert "need matplotlib" in words(app)


def test_the_paper_of_other_runs_is_not_offered(two, monkeypatch):
    monkeypatch.setattr("bidir_core.report.paper.zip_paper", lambda *args, **options: b"zip")
    app = opened()
    app.button(key="report-paper").click().run()
    assert any(label.startswith("Download (") for label in labels(app))
    app.query_params["metric"] = "acc_norm"
    app.run()
    assert not any(label.startswith("Download (") for label in labels(app))


def contents(folder: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}
