"""Many prompts continued at once read as each alone does."""

from __future__ import annotations

import pytest

from bidir_core.explain.generate import Sampling, generate
from bidir_core.models.families import tiny_loaded
from bidir_core.regimes import parse_regime
from scripts.order_generation import greedy, normalised


@pytest.mark.parametrize("regime", ["causal", "bidirectional", "bidirectional:layers=1-"])
def test_many_prompts_at_once_are_continued_as_each_alone(regime: str) -> None:
    loaded = tiny_loaded("llama")
    prompts = [[5, 9, 2, 7], [3, 4], [8, 8, 1, 6, 2, 9, 5]]
    alone = [
        generate(loaded, prompt, regime, Sampling(max_new_tokens=5)).text.strip().split("\n")[0]
        for prompt in prompts
    ]
    assert greedy(loaded, prompts, parse_regime(regime), 5) == alone


def test_answers_are_compared_without_case_articles_and_punctuation() -> None:
    assert normalised(" The  Krebs-cycle.") == normalised("krebscycle")
    assert normalised("a cell") != normalised("a cells")
