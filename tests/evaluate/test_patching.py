"""Patching a token's causal keys and values: what it must equal, and what it must not touch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bidir_core.common.errors import UserError
from bidir_core.data.encoding import EncodedItem, Tokens
from bidir_core.data.items import Item
from bidir_core.evaluate.patching import Patch
from bidir_core.evaluate.scoring import Scorer, plan_scoring
from bidir_core.models.families import tiny_loaded
from bidir_core.regimes import BIDIRECTIONAL, parse_regime

SINK = parse_regime("bidirectional:sink=1")


def items(n: int = 6) -> list[EncodedItem]:
    """Items of one and of two contexts, prefixes of 1 to 12 tokens."""
    random = np.random.default_rng(3)

    def tokens(length: int) -> Tokens:
        ids = random.integers(0, 250, length)
        return Tokens(ids, np.zeros((length, 2), dtype=np.int64))

    made = []
    for number in range(n):
        prefixes = [tokens(1 + 2 * number)] + ([tokens(5)] if number % 3 == 2 else [])
        texts = ("a",) * len(prefixes)
        item = Item("mine", number, f"hash{number}", 0, texts, (" x", " yy"))
        continuations = (tokens(3), tokens(2))
        made.append(EncodedItem(item, texts, tuple(prefixes), continuations))
    return made


def score(loaded, regime, patch: str | None = None, *, padded: bool = False) -> list[np.ndarray]:
    plan = plan_scoring(items(), regime=regime, device=torch.device("cuda" if padded else "cpu"))
    plan = plan.under(regime, Patch.parse(patch) if patch else None)
    scorer = Scorer(loaded.model, loaded.handle, plan)
    found = {s.index: s for batch in plan.batches for s in scorer.score(batch.items)}
    return [np.concatenate(found[i].token_ll) for i in sorted(found)]


@pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "gpt_neox"])
def test_patching_keys_and_values_is_sink_1(family: str, padded: bool) -> None:
    loaded = tiny_loaded(family)
    both = score(loaded, BIDIRECTIONAL, "both=0", padded=padded)
    sink = score(loaded, SINK, padded=padded)
    plain = score(loaded, BIDIRECTIONAL, padded=padded)
    for one, other in zip(both, sink, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    # And the identity says something: these models do feel the first token's look ahead.
    assert max(np.abs(a - b).max() for a, b in zip(sink, plain, strict=True)) > 0.01


def test_the_capture_pass_is_counted() -> None:
    """Every token that the model sees is in the run's cost, the ones run to be patched in too."""
    loaded = tiny_loaded("llama")
    for patch in (None, "both=0", "keys=3"):
        plan = plan_scoring(items(), regime=BIDIRECTIONAL, device=torch.device("cpu"))
        plan = plan.under(BIDIRECTIONAL, Patch.parse(patch) if patch else None)
        scorer = Scorer(loaded.model, loaded.handle, plan)
        seen: list[int] = []
        hook = loaded.handle.decoder.layers[0].register_forward_pre_hook(
            lambda _, arguments, seen=seen: seen.append(arguments[0].shape[:2].numel())
        )
        for batch in plan.batches:
            list(scorer.score(batch.items))
        hook.remove()
        assert scorer.cost.computed_tokens == sum(seen)
        assert len(seen) == len(plan.batches) * (1 if patch is None else 2)


def test_keys_and_values_alone_are_different_things() -> None:
    loaded = tiny_loaded("llama")
    found = [
        score(loaded, BIDIRECTIONAL, patch) for patch in ("keys=0", "values=0", "both=0", None)
    ]
    for i, one in enumerate(found):
        for other in found[i + 1 :]:
            assert max(np.abs(a - b).max() for a, b in zip(one, other, strict=True)) > 1e-3
    # A prefix of one token looks at nothing ahead: there is nothing to patch.
    for one in found:
        np.testing.assert_allclose(one[0], found[-1][0], atol=1e-5)


def test_another_token_can_be_patched() -> None:
    """Its causal states come from its causal neighbours too, so this is not ``skip=J``."""
    loaded = tiny_loaded("llama")
    skip = score(loaded, parse_regime("bidirectional:skip=3"))
    patched = score(loaded, BIDIRECTIONAL, "both=3")
    # Where J lies beyond the prefix, both leave the item alone.
    plain = score(loaded, BIDIRECTIONAL)
    np.testing.assert_allclose(patched[1], plain[1], atol=1e-5)
    np.testing.assert_allclose(skip[1], plain[1], atol=1e-5)
    assert max(np.abs(a - b).max() for a, b in zip(patched, plain, strict=True)) > 1e-3


def test_a_patch_prints_what_it_parses() -> None:
    for text in ("keys=0", "values=3", "both=12"):
        assert str(Patch.parse(text)) == text
    for text in ("keys", "heads=1", "keys=-1", "both=x"):
        with pytest.raises(UserError, match="unknown patch"):
            Patch.parse(text)
