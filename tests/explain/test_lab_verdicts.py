"""What the controls of a sweep say: outcomes from intervals alone."""

import pytest

from bidir_core.analyse.stats import student_mean
from bidir_core.explain.controls import answer, observed
from bidir_core.explain.sweep_points import CLIP, RANDOM, Point, control_points
from tests.attend_factory import make_summary
from tests.lab_factory import N_LAYERS, USUAL, make_sweep


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
