"""The best points of a sweep: what several dials' verdicts on the same items are worth together."""

import numpy as np
import pytest

from bidir_core.analyse import stats
from bidir_core.analyse.stats import student_mean
from bidir_core.explain.controls import answer, observed
from bidir_core.explain.sweep_outcomes import Outcomes
from bidir_core.explain.sweep_points import CLIP, RANDOM, Point, control_points
from bidir_core.explain.sweep_summary import choose
from tests.attend_factory import make_summary
from tests.lab_factory import N_LAYERS, USUAL, make_sweep

DIALS = ("sink", "lambda", "layers", "tail")
CANDIDATES = 3
WORLDS = 300


def world(rng: np.random.Generator, gains: dict[str, float], n: int = 160) -> Outcomes:
    """Two tasks of ``n`` items; a dial's points are right as often as bidirectional, plus a gain.

    Half of an item's luck is shared by all points, as runs of one model agree on many items.
    """
    task = np.repeat(["a", "b"], n)
    shared = rng.random(2 * n)

    def answers(accuracy: float) -> np.ndarray:
        own = rng.random(2 * n)
        return np.where(rng.random(2 * n) < 0.5, shared, own) < accuracy

    right = {"bidirectional": answers(0.4), "causal": answers(0.55)}
    for dial in DIALS:
        for number in range(CANDIDATES):
            right[f"{dial}-{number}"] = answers(0.4 + gains.get(dial, 0.0))
    return Outcomes(
        task=task,
        halves=np.where(rng.random(2 * n) < 0.5, "explore", "confirm"),
        right=right,
        known={slug: np.ones(2 * n, dtype=bool) for slug in right},
    )


def claims(outcomes: Outcomes, confidence: float) -> bool:
    """Whether any dial's best point, chosen and judged as a sweep does, is said to differ."""
    chosen = [
        choose(outcomes, [f"{dial}-{i}" for i in range(CANDIDATES)], "explore") for dial in DIALS
    ]
    deltas = [
        outcomes.delta("bidirectional", slug, "confirm", confidence=confidence) for slug in chosen
    ]
    return any(delta.excludes_zero for delta in deltas)


def test_with_no_effect_anywhere_few_families_claim_one() -> None:
    """300 worlds: binomial(300, 0.05) is at most 25 in 99.6 % of cases."""
    rng = np.random.default_rng(20261123)
    worlds = [world(rng, {}) for _ in range(WORLDS)]
    assert sum(claims(w, 1 - stats.ALPHA / len(DIALS)) for w in worlds) <= 25
    # Judged one by one they claim an effect far too often: the adjustment is needed.
    assert sum(claims(w, stats.CONFIDENCE) for w in worlds) > 25


def test_a_sweeps_dials_are_judged_as_a_family(root) -> None:
    regimes = [f"bidirectional:{dial}" for dial in ("sink=1", "sink=2", "lambda=0.3", "layers=0-4")]
    sweep = make_sweep(root, regimes, n_items=400)
    dials = sweep.metrics["best_of_dials"]["acc"]
    assert set(dials) == {"sink", "lambda", "layers"}
    for dial in dials.values():
        assert dial["family"]["n"] == 3
        assert dial["family"]["confidence"] == pytest.approx(1 - 0.05 / 3)
        single, joint = dial["confirm"]["delta"], dial["simultaneous"]["delta"]
        assert joint["low"] < single["low"] < joint["value"] == single["value"]
        assert single["high"] < joint["high"]
        assert "interval holds for all 3 dials together" in dial["sentence"]
        assert "simultaneous 95 % CI" in dial["sentence"]
    # The sweep's own best point is one question.
    best = sweep.metrics["best"]["acc"]
    assert "family" not in best
    assert "simultaneous" not in best["sentence"]
    one_dial = make_sweep(root, regimes[:2], n_items=60)
    assert one_dial.metrics["best_of_dials"]["acc"] == {}


def test_a_summary_answers_triviality_only_with_both_regimes(tmp_path) -> None:
    regimes = ("causal", "bidirectional", "bidirectional:sink=1")
    full = make_summary(tmp_path, regimes, n_items=30, future=(0, 0.4, 0.25))
    outcome, finding = observed(full.metrics)
    assert outcome == "supports"
    assert "25.0 %" in finding
    assert observed(None) is None
    assert observed({}) is None
    assert observed(make_summary(tmp_path, regimes[:2], n_items=5).metrics) is None


def test_few_items_do_not_answer_triviality() -> None:
    """By a normal interval (2.4 to 3.4 %) three would."""
    three, plain = student_mean([0.024, 0.030, 0.033]), student_mean([0.3, 0.31, 0.32])
    assert (three.value, three.low, three.high) == pytest.approx((0.029, 0.0176, 0.0404), abs=1e-4)
    assert answer(three, plain)[0] == "undecided"
    outcome, finding = answer(student_mean([0.5]), student_mean([0.6]))
    assert outcome == "undecided"
    assert "50.0 % (no interval)" in finding


@pytest.mark.parametrize(
    ("who_looks", "lost_norm", "amount", "norm"),
    [(True, False, "supports", "does not cost it"), (False, True, "refutes", "costs it")],
    ids=["who looks", "how much is seen"],
)
def test_random_look_ahead_and_a_clipped_norm_say_what_they_were_made_to_say(
    root, who_looks, lost_norm, amount, norm
) -> None:
    def accuracy(point: Point) -> float:
        if point.patch == CLIP:
            harmed = lost_norm
        elif point.patch == RANDOM:
            harmed = ("rows" not in point.regime) == who_looks
        else:
            harmed = point.regime == "bidirectional"
        return 0.3 if harmed else 0.5

    points = control_points(USUAL, 20, [], N_LAYERS)
    extra = [point for point in points if point.patch in (RANDOM, CLIP)]
    sweep = make_sweep(root, [], extra=extra, n_items=600, world=accuracy)
    controls = {control["name"]: control for control in sweep.metrics["controls"]}
    assert controls["amount"]["outcome"] == amount
    finding = controls["amount"]["finding"]
    assert all(word in finding for word in ("sink=1", "layers=2-", "rows=0-0"))
    assert controls["norm"]["outcome"] == "open"
    assert f"the norm alone {norm}" in controls["norm"]["finding"]


def test_several_points_of_one_task_are_judged_by_a_test_adjusted_for_them() -> None:
    right = {"causal": np.ones(500, bool), "other": np.arange(500) >= 8}
    known = {slug: np.ones(500, bool) for slug in right}
    outcomes = Outcomes(np.array(["piqa"] * 500), np.array(["explore"] * 500), right, known)
    alone = outcomes.judged("causal", "other")
    of_ten = outcomes.judged("causal", "other", confidence=1 - 0.05 / 10)
    assert (alone.p_adjusted, alone.verdict) == ((), "worse")
    assert of_ten.p_adjusted == pytest.approx([10 * alone.p_values[0]])
    assert of_ten.verdict == "undecided"
