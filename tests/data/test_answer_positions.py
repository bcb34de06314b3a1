"""A task whose right answers stand in one place says so: in the log, the run's facts, the app."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bidir_core.cli import main
from bidir_core.data.items import Item, answer_positions, one_sided_sentences
from bidir_core.data.tasks import load_items
from bidir_core.runs.run import Run
from tests.app import STAGE2, open_page, words
from tests.factory import make_run, unsealed


def items(golds: list[int], n_choices: int) -> list[Item]:
    texts = tuple(f" {i}" for i in range(n_choices))
    return [Item("mine", i, str(i), gold, ("",), texts) for i, gold in enumerate(golds)]


@pytest.mark.parametrize(
    ("golds", "n_choices", "one_sided"),
    [
        ([3] * 1000, 4, True),
        ([3] * 960 + [0] * 40, 4, True),
        ([1] * 880 + [0] * 120, 2, False),  # not nearly all; its share is recorded all the same
        ([1] * 1900 + [0] * 100, 2, True),
        ([0, 1, 2, 3] * 50, 4, False),
        ([3] * 5, 4, True),
        ([1] * 6, 2, False),  # one set in 32 looks so by accident
        ([1], 2, False),
    ],
)
def test_nearly_all_in_one_place(golds: list[int], n_choices: int, one_sided: bool) -> None:
    facts = answer_positions(items(golds, n_choices))["mine"]
    assert facts["one_sided"] is one_sided
    assert facts["best_constant_guess"] == max(map(golds.count, golds)) / len(golds)
    assert facts["right"] == [golds.count(k) for k in range(n_choices)]
    sentences = one_sided_sentences({"mine": facts})
    assert len(sentences) == one_sided
    if one_sided:
        assert f"a constant guess scores {facts['best_constant_guess']:.1%}" in sentences[0]
        assert f"choice {golds[0] + 1} of {n_choices} is right in" in sentences[0]


@given(st.integers(0, 2**32), st.integers(2, 5), st.integers(1, 300))
def test_shuffled_answers_are_hardly_ever_called_one_sided(seed: int, choices: int, n: int) -> None:
    draws = random.Random(seed)
    positions = [
        answer_positions(items([draws.randrange(choices) for _ in range(n)], choices))["mine"]
        for _ in range(5)
    ]
    assert sum(facts["one_sided"] for facts in positions) <= 2


@pytest.mark.assets
def test_built_in_tasks_are_not_one_sided_but_sciqs_own_order_is() -> None:
    from bidir_core.data.builtin_tasks import ORDER_TASKS, SCIQ
    from bidir_core.data.tasks import TASKS

    facts = answer_positions(load_items(list(TASKS)))
    assert not one_sided_sentences(facts)
    assert facts["boolq_first"]["best_constant_guess"] == pytest.approx(0.6217, abs=1e-4)
    assert facts["sciq_letters_last"]["best_constant_guess"] == pytest.approx(0.25, abs=0.002)
    assert ORDER_TASKS["sciq_first"].data is SCIQ


def test_a_run_says_so_in_its_log_and_facts(tiny_folder, tmp_path, runs_dir) -> None:
    file = tmp_path / "last.jsonl"
    lines = [
        {"contexts": [f"number {i}"], "continuations": [" a", " b", " c"], "gold": 2}
        for i in range(12)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["eval", "--model", str(tiny_folder), "--tasks", str(file), "--device", "cpu"]) == 0
    (folder,) = (runs_dir / "stage1_vanilla_eval").iterdir()
    config = Run(folder).config
    found = {"n": 12, "right": [0, 0, 12], "best_constant_guess": 1.0, "one_sided": True}
    assert config["answer_positions"]["last"] == found
    (warning,) = config["warnings"]
    assert "choice 3 of 3 is right in 12 of 12 items" in warning
    assert warning in (folder / "log.txt").read_text()


def test_the_app_says_so_and_survives_what_was_written_by_hand(root) -> None:
    run = unsealed(make_run(root, STAGE2, n_items=10, regime="bidirectional"))
    path = run.path / "config.json"
    config = json.loads(path.read_text())
    facts = answer_positions(items([3] * 40, 4))
    path.write_text(json.dumps(config | {"answer_positions": facts}))
    assert "a constant guess scores 100.0%" in words(open_page("pages/runs.py"))
    for positions in ({"piqa": 3}, [], "x", {"piqa": {"one_sided": True}}):
        path.write_text(json.dumps(config | {"answer_positions": positions}))
        assert "could not be read" not in words(open_page("pages/runs.py"))
