"""Overview, Compare, report, terminal and paper say the same verdict of the same pair."""

import re

import pytest

from bidir_core.analyse.compare import macro_judgement
from bidir_core.analyse.judgement import Findings
from bidir_core.analyse.study import CAUSAL, make_study
from bidir_core.cli import main
from bidir_core.explain.sweep_outcomes import outcomes
from bidir_core.report import answers
from bidir_core.report.report import build_report
from bidir_core.report.scorecard import REPAIRED, scorecard
from bidir_core.runs.find import list_runs
from bidir_ui.reading import analysis, data
from tests.factory import answered

# Verdict: the scorecard's words, the report's answer, the first words, and the status of the claim that
# bidirectional prefill lowers accuracy.
NONE = "It makes no difference beyond 1 point."
PHRASES = {
    "worse": ("It hurts", "It hurts.", "lower", "supported"),
    "better": ("It helps", "It does not hurt here.", "higher", "refuted"),
    "equivalent": ("No difference", NONE, "no difference", "refuted"),
    "undecided": ("Undecided", "These runs do not decide it.", "undecided", "undecided"),
}
FIVE, ONE = tuple("vwxyz"), ("piqa",)


def claimed(findings: Findings, start: str) -> str:
    from bidir_core.report.paper import make_claims

    for claim in make_claims(findings):
        if claim.claim.startswith(start):
            return claim.status
    raise AssertionError(f"no claim starts with {start}")


@pytest.mark.parametrize(
    ("verdict", "tasks", "wrong_causal", "wrong_bidirectional"),
    [
        ("worse", FIVE, range(100), range(200)),
        ("better", FIVE, range(200), range(100)),
        ("equivalent", FIVE, range(100), range(100)),
        ("undecided", FIVE, range(100), range(60, 165)),
        ("worse", ONE, range(100), range(200)),
        # exact p = 0.0625, and the interval leaves out 0
        ("undecided", ONE, range(100), range(105)),
        ("undecided", ONE, range(100), range(60, 165)),
    ],
)
def test_of_the_masks_damage(root, capsys, verdict, tasks, wrong_causal, wrong_bidirectional):
    title, answer, words, claim = PHRASES[verdict]
    a = answered(root, CAUSAL, wrong_causal, tasks)
    b = answered(root, "bidirectional", wrong_bidirectional, tasks)
    infos = data.list_infos()
    compared = analysis.compare(data.by_id(infos, a.id), data.by_id(infos, b.id))
    (row,) = scorecard(list_runs())
    assert row.hurt.words == title
    assert row.hurt.judgement == compared.macro.judgement
    assert compared.macro.words.startswith(words)
    assert ("raises" in compared.sentence) == (verdict == "better")
    assert ("lowers" in compared.sentence) == (verdict == "worse")

    assert main(["compare", str(a.path), str(b.path)]) == 0
    macro = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("macro"))
    assert macro.split("  ")[-1].strip() == compared.macro.words

    report = build_report([a, b])
    assert answer in report.markdown(["answers"])
    row = report.tables["contrasts"].rows[0]
    assert words in row
    damage = "Without training, bidirectional prefill lowers macro"
    assert claimed(report.numbers, damage) == claim
    if tasks == ONE and wrong_bidirectional == range(105):
        for text in (compared.sentence, report.markdown(["answers"]), macro):
            assert "exact McNemar test, p = 0.0625" in text
            assert "Holm" not in text.replace("p (Holm)", "")


def test_of_a_sweeps_point_of_one_task(root) -> None:
    """Its interval leaves out 0, and the exact p is 0.0625: undecided here as in Compare."""
    a = answered(root, CAUSAL, range(100), ONE)
    b = answered(root, "bidirectional", range(105), ONE)
    found = outcomes(a, {"causal": a, "bidirectional": b}, "acc").judged("causal", "bidirectional")
    compared = macro_judgement(a, b)
    assert (found.verdict, found.reason) == ("undecided", "exact test")
    assert (found.estimate, found.p_values) == (compared.estimate, compared.p_values)


@pytest.mark.parametrize(
    ("verdict", "wrong"),
    [
        ("better", [range(100)]),
        ("worse", [range(200, 350), range(200, 360), range(200, 340)]),
        ("better", [range(95), range(100), range(105)]),
        ("undecided", [range(60, 140), range(120, 320), range(250, 500)]),  # seeds disagree
    ],
)
def test_of_a_fine_tune_with_one_seed_and_with_several(root, verdict, wrong) -> None:
    """Its gain over the untrained model, both under the mask."""
    answered(root, CAUSAL, range(50), FIVE, n=360)
    answered(root, "bidirectional", range(180), FIVE, n=360)
    for seed, span in enumerate(wrong):
        shifted = span if verdict != "worse" else range(60, span.stop)
        answered(root, "bidirectional", shifted, FIVE, n=360, trained="3B", seed=seed)
    (row,) = scorecard(list_runs())
    judgement = row.repair.judgement
    assert (judgement.verdict, judgement.n_seeds) == (verdict, len(wrong))

    study = make_study(list_runs())
    findings = Findings(study)
    repair = findings.repair(study.trained("3B")[0])
    assert repair.gain.interval == judgement.estimate
    lines = answers.can_it_be_fixed(repair)
    verb, status = {
        "better": ("raises", "supported"),
        "worse": ("lowers", "refuted"),
        "undecided": ("moves", "undecided"),
    }[verdict]
    assert re.search(rf"fine-tuning {verb} macro accuracy", " ".join(lines))
    assert claimed(findings, "Fine-tuning 3B raises") == status
    assert row.repair.words == REPAIRED[repair.outcome]


def test_a_single_seed_is_not_paired_with_every_seed_of_another_arm(root) -> None:
    answered(root, CAUSAL, range(50), FIVE, n=100)
    for seed in range(3):
        answered(root, "bidirectional", range(30 + seed), FIVE, n=100, trained="3B", seed=seed)
    answered(root, CAUSAL, range(20), FIVE, n=100, trained="3C", seed=1)
    findings = Findings(make_study(list_runs()))
    ours, control = findings.study.main_pair()
    difference = findings.between((control, CAUSAL), (ours, "bidirectional"))
    assert difference.n_seeds == 1
    assert difference.notes == ("only the seeds that both arms have: 1",)
    base = findings.between(findings.stage1, (ours, "bidirectional"))
    assert base.n_seeds == 3
