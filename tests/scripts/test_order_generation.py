"""Many prompts continued at once read as each alone does."""

from pathlib import Path

import pytest

from bidir_core.explain.generate import Sampling, generate
from bidir_core.models.families import tiny_loaded
from bidir_core.regimes import parse_regime
from scripts.order_generation import begins_with, greedy, matches, read, write


@pytest.mark.parametrize("regime", ["causal", "bidirectional", "bidirectional:layers=1-"])
def test_many_prompts_at_once_are_continued_as_each_alone(regime: str) -> None:
    loaded = tiny_loaded("llama")
    prompts = [[5, 9, 2, 7], [3, 4], [8, 8, 1, 6, 2, 9, 5]]
    alone = [
        generate(loaded, prompt, regime, Sampling(max_new_tokens=5)).text.strip().split("\n")[0]
        for prompt in prompts
    ]
    assert greedy(loaded, prompts, parse_regime(regime), 5) == alone


@pytest.mark.parametrize(
    ("answer", "right", "exact", "begins"),
    [
        (" The  Krebs-cycle.", "krebscycle", True, True),
        ("a cells", "a cell", False, False),
        ("nucleotides, as the passage says", "nucleotides", False, True),
        ("D. nucleotides", "D", False, True),
        ("(a) wetland", "A", False, True),
        ("A", "A", True, True),
        ("A wetland is wet", "A", False, False),  # the article
        ("::::", "A", False, False),
        ("", "the", False, False),
    ],
)
def test_what_counts_as_a_right_answer(answer: str, right: str, exact: bool, begins: bool) -> None:
    assert (matches(answer, right), begins_with(answer, right)) == (exact, begins)


def test_answers_are_read_as_written(tmp_path: Path) -> None:
    rows = [{"model": "one", "answers": ["Ångström", ""]}, {"model": "two", "answers": []}]
    write(tmp_path / "answers.jsonl.gz", rows)
    assert read(tmp_path / "answers.jsonl.gz") == rows
    assert read(tmp_path / "none.jsonl.gz") == []
