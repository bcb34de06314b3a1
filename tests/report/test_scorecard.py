"""The scorecard finds evidence by what runs are, and says no more than their intervals."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bidir_core.explain.sweep_outcomes import law_of
from bidir_core.explain.sweep_points import Point
from bidir_core.regimes import parse_regime
from bidir_core.report.scorecard import Row, answer, scorecard
from bidir_core.runs.find import list_runs
from bidir_core.runs.run import Run
from tests.app import STAGE2, pair
from tests.factory import make_item, make_reference, make_run, tear
from tests.lab_factory import make_sweep

FOUR = [(arm, regime) for arm in ("3B", "3C") for regime in ("bidirectional", "causal")]
OPENED = [f"bidirectional:layers={first}-" for first in (1, 2, 3, 6)]


def opened(point: Point) -> float:
    """Looking ahead does its harm in the first two layers, and only with the first token."""
    layers = parse_regime(point.regime).layers
    harmless = point.regime in ("causal", "bidirectional:sink=1") or (layers and layers[0] >= 2)
    return 1.0 if harmless else 0.6


def rows(root: Path, limit: int | None = None) -> list[Row]:
    return scorecard(list_runs([root], points=True), limit=limit)


def tuned(root: Path, arm: str, regime: str, *, train_seed: int = 0, **options) -> Run:
    """An evaluation of a fine-tuned checkpoint that says how it was trained."""
    stage = "nonprefill_compare" if regime == "causal" else "stage4_postft_eval"
    record = {"objective": arm, "method": "full", "steps": 400, "seed": train_seed}
    facts = {"training_record": record} | options.pop("facts", {})
    common = {"n_items": 800, "texts": False, "checkpoint": f"checkpoints/{arm}/final"}
    return make_run(root, stage, regime=regime, facts=facts, **common | options)


def study(root: Path, repaired: float, control: float, **options) -> None:
    """3B and 3C under both masks; ``control``: of 3C looking ahead."""
    for arm, regime in FOUR:
        is_control = arm == "3C" and regime == "bidirectional"
        tuned(root, arm, regime, accuracy=control if is_control else repaired, **options)


def test_each_model_has_a_row_on_its_fullest_items_in_one_number_format(root) -> None:
    pair(root, n_items=200, texts=False, config={"limit": 500})
    full = {"n_items": 800, "texts": False}
    pair(root, **full)
    make_run(root, accuracy=0.1, facts={"dtype": "bfloat16"}, **full)  # no partner
    pair(root, n_items=100, texts=False, model="other/model")
    ours, other = rows(root)
    assert (ours.model, ours.n, ours.extent) == ("smollm2-135m-instruct", 800, "whole sets")
    assert ours.hurt.judgement.estimate.n == 800
    assert ours.hurt.words == "It hurts"
    assert (other.model, other.n) == ("other/model", 100)
    (small,) = [row for row in rows(root, limit=500) if row.model == ours.model]
    assert (small.n, small.extent) == (200, "first 500 of each task")


def test_points_of_a_sweep_answer_hurt_and_why_without_any_evaluation(root) -> None:
    sweep = make_sweep(root, [*OPENED, "bidirectional:sink=1"], n_items=900, world=opened)
    (row,) = rows(root)
    assert row.hurt.runs[0] == f"{sweep.id}/points/causal"
    law = law_of(sweep)
    assert row.why.judgement == law.regained
    assert row.why.runs == (sweep.id,)
    assert row.why.words == f"In the first {law.first_layer} layers".replace("1 layers", "layer")
    assert row.why.judgement.estimate.n < row.n  # the half that did not choose
    assert row.without_training.what == "back with the first 2 layers causal"
    assert [label for label, _ in row.steps][:2] == ["Looking ahead", "First token causal"]


def test_controls_are_badges_that_support_or_refute(root) -> None:
    pair(root, n_items=800, texts=False)
    for regime, rate in (("bidirectional:sink=1", 0.7), ("causal:hide=0", 0.69)):
        make_run(root, STAGE2, n_items=800, texts=False, regime=regime, accuracy=rate)
    (row,) = rows(root)
    (badge,) = row.why.badges
    assert (badge.claim, badge.outcome) == ("lost first token", "refutes")
    assert "points (95 % CI" in badge.detail
    assert row.why.words == "First token causal helps"


def test_repair_is_told_only_with_its_control(root) -> None:
    pair(root, n_items=800, texts=False)
    for arm, regime in FOUR:
        assert not any(row.repair and row.repair.words == "Repaired" for row in rows(root))
        is_control = arm == "3C" and regime == "bidirectional"
        tuned(root, arm, regime, accuracy=0.42 if is_control else 0.72)
    (row,) = rows(root)
    assert row.repair.words in ("Repaired", "At least partly repaired")
    assert row.repair.badges[0].outcome == "supports"
    assert row.repair.value == pytest.approx(0.3, abs=0.05)
    assert "fine-tuning beats its control by" in answer(row)
    assert [label for label, _ in row.steps][-1] == "Control fine-tune"


def test_a_study_beside_a_sweep_takes_its_base_from_the_points(root) -> None:
    make_sweep(root, OPENED, n_items=500, world=opened)
    study(root, 0.5, 0.3, n_items=500, config={"limit": 500}, seed=3)
    (row,) = rows(root)
    assert row.repair.judgement.estimate.n == 500
    assert any(label == "Repair fine-tune" for label, _ in row.steps)


def test_seeds_without_items_are_said(root) -> None:
    pair(root, n_items=800, texts=False)
    for seed in range(3):
        for arm, regime in FOUR:
            is_control = arm == "3C" and regime == "bidirectional"
            run = tuned(root, arm, regime, train_seed=seed, accuracy=0.4 if is_control else 0.7)
            if seed:
                (run.path / "items.parquet").unlink()
    (row,) = rows(root)
    assert row.repair.reason.startswith("1 of 3 seeds")
    assert all(Run(root / run).has_items for run in row.repair.runs)


# --- does it help anywhere? ------------------------------------------------------------------------


def order_run(
    root: Path,
    rate: float,
    *,
    regime: str = "causal",
    seed: int = 0,
    right: Callable[[int], int] = lambda number: number % 4,
    **options,
) -> Run:
    tasks = ("sciq_first", "sciq_last")
    items = [
        make_item(task, number, 0) | {"pair_id": f"sciq/{number}", "gold": right(number)}
        for task in tasks
        for number in range(400)
    ]
    golds = [right(number) for number in range(400)]
    guess = max(golds.count(gold) for gold in golds) / 400
    positions = {"sciq_last": {"n": 400, "right": [1], "best_constant_guess": guess}}
    stage = "stage1_vanilla_eval" if regime == "causal" else STAGE2
    options |= {"items": items, "tasks": tasks, "facts": {"answer_positions": positions}}
    accuracy = {"sciq_first": 0.8, "sciq_last": rate}
    return make_run(root, stage, regime=regime, seed=seed, accuracy=accuracy, **options)


def test_order_tasks_tell_whether_it_helps_anywhere(root) -> None:
    pair(root)
    causal = order_run(root, 0.5)
    order_run(root, 0.3, regime="bidirectional", seed=1)
    (row,) = rows(root)
    assert row.helps.words == "In none of 1 try"
    better = order_run(root, 0.65, regime="bidirectional:layers=2-", seed=2)
    (row,) = rows(root)
    assert (row.helps.words, row.helps.reason) == ("In 1 of 2 tries", "sciq")
    assert row.helps.runs == (causal.id, better.id)
    assert row.helps.what == "sciq, bidirectional:layers=2-"
    assert row.n == 40, "order tasks are no items of the other answers"


def test_a_gain_up_to_a_constant_guess_is_no_help(root) -> None:
    """A model that learns to answer what is right most often gains, and has read nothing."""
    pair(root)
    order_run(root, 0.5, right=lambda number: int(number % 10 >= 7))
    order_run(root, 0.7, right=lambda number: int(number % 10 >= 7), regime="bidirectional", seed=1)
    (row,) = rows(root)
    assert row.helps.judgement.verdict == "better"
    assert row.helps.words == "Not beyond guessing"
    assert not row.helps.supported


def test_what_helps_is_set_beside_repeating_the_prompt(root) -> None:
    pair(root)
    order_run(root, 0.5)
    order_run(root, 0.65, regime="bidirectional", seed=2)
    order_run(root, 0.9, seed=3, config={"repeat_prompt": 2})
    (row,) = rows(root)
    assert row.helps.words == "In 1 of 1 try"
    (badge,) = row.helps.badges
    assert (badge.claim, badge.outcome) == ("beats repetition", "refutes")


def test_what_is_not_shown_is_not_said_to_help(root) -> None:
    pair(root)
    order_run(root, 0.5)
    order_run(root, 0.51, regime="bidirectional:layers=2-", seed=2)
    (row,) = rows(root)
    assert row.helps.words == "Not shown in 1 try"
    assert row.helps.judgement.verdict == "undecided"


# --- what cannot be paired -------------------------------------------------------------------------


def test_published_numbers_stand_last_without_a_claim_of_repair(root) -> None:
    make_reference(root, tasks={"piqa": 0.788, "winogrande": 0.666})
    make_reference(root, STAGE2, tasks={"piqa": 0.534, "winogrande": 0.518}, regime="bidirectional")
    pair(root)
    *_, last = rows(root)
    assert last.published
    assert last.hurt.value == pytest.approx(0.526 - 0.727)
    assert last.repair is last.why is last.helps is None


def test_a_damaged_run_changes_no_other_models_row(root) -> None:
    pair(root, model="other/model")
    (before,) = rows(root)
    _, b = pair(root)
    tear(b)
    intact, torn = rows(root)
    assert intact == before
    assert torn.hurt is None
    assert answer(torn) == ""


@pytest.mark.parametrize("rate", [0.7, 0.4, 0.69])
def test_the_sentence_gives_a_direction_only_where_the_interval_has_one(root, rate) -> None:
    make_run(root, n_items=400, texts=False, accuracy=0.7)
    make_run(root, STAGE2, n_items=400, texts=False, regime="bidirectional", accuracy=rate, seed=1)
    (row,) = rows(root)
    decided = row.hurt.judgement.verdict == "worse"
    assert ("smollm2 135m loses" in answer(row).lower() and "points" in answer(row)) == decided
