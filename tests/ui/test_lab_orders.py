"""Prompt order on the Lab page: evaluations of order tasks found, paired, and said either way."""

from pathlib import Path

import pytest

from bidir_core.runs.run import Run
from tests.app import STAGE2, open_page, words
from tests.factory import make_item, make_run

PAGE = "pages/lab.py"
TASKS = ("sciq_first", "sciq_last")


def order_items(n: int) -> list[dict]:
    items = []
    for order in TASKS:
        for i in range(n):
            item = make_item(order, i, 0)
            gold = make_item(TASKS[0], i, 0)["gold"]
            items.append(item | {"gold": gold, "pair_id": f"sciq/{i}"})
    return items


def order_run(
    root: Path, first: float, last: float, *, regime: str = "causal", facts=None, **config
) -> Run:
    return make_run(
        root,
        "stage1_vanilla_eval" if regime == "causal" else STAGE2,
        items=order_items(config.pop("n", 300)),
        tasks=TASKS,
        regime=regime,
        seed=len(regime),
        accuracy={"sciq_first": first, "sciq_last": last},
        config=config,
        facts=facts,
    )


@pytest.fixture
def arms(root) -> list[Run]:
    return [
        order_run(root, 0.8, 0.5),
        order_run(root, 0.6, 0.4, regime="bidirectional"),
        order_run(root, 0.8, 0.62, regime="bidirectional:layers=2-"),
        order_run(root, 0.8, 0.75, repeat_prompt=2),
    ]


def test_evaluations_of_order_tasks_are_one_set_with_every_arm(root, arms) -> None:
    order_run(root, 0.8, 0.5, n=40, limit=40)  # other documents: a set of its own
    app = open_page(PAGE, sweep=arms[0].id)
    text = words(app)
    assert "With the passage last causal is right" in text
    for arm in ("bidirectional", "bidirectional:layers=2-", "causal, prompt 2 times"):
        assert f"{arm} " in text.partition("Recovered of that without training:")[2]
    (box,) = [b for b in app.selectbox if b.label == "Sweep"]
    assert sum("prompt order" in option for option in box.options) == 2
    assert "4 runs" in next(option for option in box.options if "4 runs" in option)


def test_without_a_gap_nothing_is_recovered(root) -> None:
    runs = [
        order_run(root, 0.6, 0.6),
        order_run(root, 0.6, 0.55, regime="bidirectional"),
    ]
    text = words(open_page(PAGE, sweep=runs[0].id))
    assert "No order gap is shown" in text
    assert "Recovered of that" not in text


def test_a_model_that_cannot_do_the_task_says_nothing_about_order(root) -> None:
    guess = {"n": 300, "right": [210, 90], "best_constant_guess": 0.7, "one_sided": False}
    facts = {"answer_positions": dict.fromkeys(TASKS, guess)}
    run = order_run(root, 0.7, 0.5, facts=facts)
    order_run(root, 0.7, 0.6, regime="bidirectional", facts=facts)
    text = words(open_page(PAGE, sweep=run.id))
    assert "not shown to beat one constant answer here (70.0 %)" in text.replace(
        "\N{NO-BREAK SPACE}", " "
    )
