"""Models whose rotary frequencies change with the longest sequence of a pass."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bidir_core.common.errors import UserError
from bidir_core.data.encoding import Encoder
from bidir_core.data.items import Item
from bidir_core.evaluate.patching import parse_patch
from bidir_core.evaluate.scoring import Scorer, plan_scoring
from bidir_core.explain import recommend
from bidir_core.explain.generate import Sampling, generate
from bidir_core.models.attention import rope_switch
from bidir_core.models.families import tiny_config, tiny_loaded, tiny_tokenizer
from bidir_core.models.layout import Layout
from bidir_core.regimes import parse_regime
from bidir_core.train.config import FinetuneConfig
from bidir_core.train.data import prepare_data
from tests.tiny_models import logits

SWITCH = 40
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 1.0,
    "short_factor": [1.0, 1.0, 1.0, 1.0],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": SWITCH,
}


def longrope() -> Any:
    return tiny_loaded("phi3", rope_parameters=LONGROPE, original_max_position_embeddings=SWITCH)


def items(*lengths: int) -> list[Item]:
    return [
        Item("mine", i, str(i), 0, ("abcdefg " * n,), (" yes", " no, it is not"))
        for i, n in enumerate(lengths)
    ]


@pytest.mark.parametrize("regime", ["causal", "bidirectional"])
def test_a_short_items_score_does_not_depend_on_a_long_one_beside_it(regime: str) -> None:
    loaded = longrope()
    encoded = Encoder(loaded.tokenizer).encode(items(1, 2, 9, 10, 3))
    assert [item.longest > SWITCH for item in encoded] == [False, False, True, True, False]
    plan = plan_scoring(encoded, regime=parse_regime(regime), device=loaded.device)
    assert len(plan.batches) == 1
    scorer = Scorer(loaded.model, loaded.handle, plan)
    together = {score.index: score.ll for score in scorer.score(plan.batches[0].items)}
    alone = {i: scorer.score([i])[0].ll for i in range(len(encoded))}
    for i in range(len(encoded)):
        np.testing.assert_allclose(together[i], alone[i], atol=1e-4)

    scorer.switch = None  # all in one pass, the short ones are read as the long ones are
    mixed = {score.index: score.ll for score in scorer.score(plan.batches[0].items)}
    np.testing.assert_allclose(mixed[2], alone[2], atol=1e-4)
    assert np.abs(np.subtract(mixed[0], alone[0])).max() > 0.01


def test_a_prompt_that_is_continued_beyond_the_switch_is_read_anew() -> None:
    loaded = longrope()
    ids = list(range(5, 5 + SWITCH - 3))
    for regime in ("causal", "bidirectional"):
        made = generate(loaded, ids, regime, Sampling(8))
        assert len(made.steps) == 8
        text = list(ids)
        for step in made.steps:  # the whole text again for every token
            layout = Layout.pack([(len(ids), len(text))])
            last = logits(loaded, regime, layout, torch.tensor([text]))[0, -1].log_softmax(-1)
            text.append(step.chosen.token_id)
            assert step.chosen.logprob == pytest.approx(float(last[text[-1]]), abs=1e-4)


def test_what_is_patched_in_is_read_as_the_prompt_is() -> None:
    loaded = longrope()
    encoded = Encoder(loaded.tokenizer).encode(items(1, 9))
    plan = plan_scoring(encoded, regime=parse_regime("bidirectional"), device=loaded.device)
    scorer = Scorer(loaded.model, loaded.handle, plan.under(plan.regime, parse_patch("keys=0")))
    scorer.score([0])
    with pytest.raises(UserError, match=f"'keys=0' .* beyond {SWITCH} tokens"):
        scorer.score([1])


def test_prompts_on_both_sides_are_measured_apart() -> None:
    assert list(recommend._batches([5, 30, 41, 50], 1000, SWITCH)) == [[3, 2], [1, 0]]
    assert list(recommend._batches([30, 41], 1000, None)) == [[1, 0]]


def test_where_the_switch_is() -> None:
    assert rope_switch(longrope().model.config) == SWITCH
    assert rope_switch(tiny_config("llama")) is None
    assert rope_switch(tiny_config("gemma3")) is None
    by_layer = tiny_config(
        "gemma3", rope_parameters={"full_attention": LONGROPE, "sliding_attention": {}}
    )
    assert rope_switch(by_layer) == SWITCH


def test_training_on_both_sides_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "samples.jsonl"
    rows = [
        '{"prompt": "abc", "response": " d"}',
        f'{{"prompt": "{"abc " * 15}", "response": " d"}}',
    ]
    data.write_text("\n".join(rows))
    config = FinetuneConfig(
        model="m", objective="3B", data=str(data), max_tokens=100, decontaminate=False
    )
    with pytest.raises(UserError, match="give at most 40"):
        prepare_data(config, tiny_tokenizer(), 512, SWITCH)
    assert prepare_data(config, tiny_tokenizer(), 512).report["n_used"] == 2
