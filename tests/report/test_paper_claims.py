"""Claims take their status from intervals, and a leaky fine-tune makes none."""

import json
import shutil
from pathlib import Path

import pytest

from bidir_core.analyse import stats
from bidir_core.analyse.verdict import judge
from bidir_core.report.paper import status_of, write_paper
from bidir_core.report.report import build_report
from bidir_core.runs.find import list_runs
from bidir_core.runs.layout import COMMITTED_RUNS
from tests.report_runs import evaluation, report


@pytest.mark.parametrize(
    ("low", "high", "wanted", "status"),
    [
        (-0.06, -0.03, "lower", "supported"),
        (-0.06, 0.01, "lower", "undecided"),
        (0.01, 0.05, "lower", "refuted"),
        (-0.009, 0.009, "lower", "refuted"),  # no difference to speak of
        (-0.009, -0.001, "lower", "refuted"),
        (0.02, 0.05, "higher", "supported"),
        (-0.05, -0.02, "higher", "refuted"),
        (-0.02, 0.05, "higher", "undecided"),
        (-0.009, 0.009, "not lower", "supported"),
        (0.02, 0.04, "not lower", "supported"),
        (-0.015, 0.004, "not lower", "undecided"),  # never "no cost" of a wide interval
        (-0.03, -0.002, "not lower", "refuted"),
    ],
)
def test_a_status_is_where_the_interval_lies(low, high, wanted, status):
    interval = stats.Estimate((low + high) / 2, low, high, 100)
    assert status_of(judge(interval, margin=0.01).verdict, wanted) == status


def statuses(folder: Path) -> dict[str, str]:
    claims = json.loads((folder / "claims.json").read_text())["claims"]
    assert all(claim["runs"] and claim["test"] for claim in claims)
    return {claim["claim"]: claim["status"] for claim in claims}


def test_repair_is_claimed_of_the_interaction_alone(tmp_path, repaired, paper):
    repair = "Part of what 3B gains over the base model under bidirectional prefill is repair of "
    repair += "the mask, not ordinary tuning."
    assert statuses(paper)[repair] == "supported"
    # As it would be if the control gained as much: it gets the fine-tune's own answers.
    root = Path(shutil.copytree(repaired, tmp_path / "runs"))
    trained, control = (
        next(r for r in list_runs([root]) if _is(r, code, "bidirectional")) for code in ("3B", "3C")
    )
    for name in ("items.parquet", "metrics.json"):
        shutil.copy(trained.path / name, control.path / name)
    after = statuses(write_paper(report(root), tmp_path / "paper"))
    assert after[repair] != "supported"
    assert after["Fine-tuning 3B raises macro accuracy under bidirectional prefill."] == "supported"


def _is(run, code: str, regime: str) -> bool:
    record = run.config.get("training_record") or {}
    return record.get("objective") == code and run.regime == regime


def test_small_runs_leave_claims_undecided_with_the_cautions_they_need(tmp_path):
    evaluation(tmp_path / "runs", "causal", 0.5, n_items=50, config={"fold": "explore"})
    evaluation(tmp_path / "runs", "bidirectional", 0.48, n_items=50, config={"fold": "explore"})
    folder = write_paper(report(tmp_path / "runs"), tmp_path / "paper")
    assert set(statuses(folder).values()) == {"undecided"}
    assert "supported" not in (folder / "tables" / "claims.tex").read_text()
    claims = json.loads((folder / "claims.json").read_text())["claims"]
    assert all("explore fold" in claim["cautions"][0] for claim in claims)


def test_published_numbers_alone_make_claims_of_unpaired_intervals(tmp_path):
    published = [run for run in list_runs([COMMITTED_RUNS]) if run.is_reference]
    folder = write_paper(build_report(published, roots=[COMMITTED_RUNS]), tmp_path / "paper")
    claims = json.loads((folder / "claims.json").read_text())["claims"]
    assert {claim["test"].split(" ")[0] for claim in claims} <= {"unpaired", "none:", "per-item"}
    results = statuses(folder)
    assert results["Without training, bidirectional prefill lowers macro accuracy."] == "supported"
    # Of the non-prefill compare only macro accuracies were published: no interval, no verdict.
    assert results["Fine-tuning 3B costs no macro accuracy under causal attention."] == "undecided"


def test_a_leaky_fine_tune_stands_in_no_file(seeded):
    _, folder, report = seeded
    assert any(arm.leaky for arm in report.study.arms)
    for path in (*folder.rglob("*.tex"), *folder.rglob("*.csv"), folder / "claims.json"):
        assert "3A" not in path.read_text(), path.name
    assert "3A" not in (folder / "figures" / "ladder.svg").read_text()
