"""Patching a token's causal keys and values: what it must equal, and what it must not touch."""

import numpy as np
import pytest
import torch

from bidir_core.common.errors import UserError
from bidir_core.data.encoding import EncodedItem, Tokens
from bidir_core.data.items import Item
from bidir_core.evaluate.patching import parse_patch
from bidir_core.evaluate.scoring import Scorer, plan_scoring
from bidir_core.models.families import tiny_loaded, tiny_model
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL, parse_regime

SINK = parse_regime("bidirectional:sink=1")


def items(n: int = 6) -> list[EncodedItem]:
    """Items of one and of two contexts, prefixes of 1 to 12 tokens."""
    random = np.random.default_rng(3)

    def tokens(length: int) -> Tokens:
        ids = random.integers(0, 250, length)
        return Tokens(ids, np.zeros((length, 2), dtype=np.int64))

    encoded = []
    for number in range(n):
        prefixes = [tokens(1 + 2 * number)] + ([tokens(5)] if number % 3 == 2 else [])
        texts = ("a",) * len(prefixes)
        item = Item("mine", number, f"hash{number}", 0, texts, (" x", " yy"))
        continuations = (tokens(3), tokens(2))
        encoded.append(EncodedItem(item, texts, tuple(prefixes), continuations))
    return encoded


def score(loaded, regime, patch: str | None = None, *, padded: bool = False) -> list[np.ndarray]:
    plan = plan_scoring(items(), regime=regime, device=torch.device("cuda" if padded else "cpu"))
    plan = plan.under(regime, parse_patch(patch) if patch else None)
    scorer = Scorer(loaded.model, loaded.handle, plan)
    scores = {s.index: s for batch in plan.batches for s in scorer.score(batch.items)}
    return [np.concatenate(scores[i].token_ll) for i in sorted(scores)]


@pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "gpt_neox"])
def test_patching_keys_and_values_is_sink_1(family: str, padded: bool) -> None:
    loaded = tiny_loaded(family)
    both = score(loaded, BIDIRECTIONAL, "both=0", padded=padded)
    sink = score(loaded, SINK, padded=padded)
    plain = score(loaded, BIDIRECTIONAL, padded=padded)
    for patched, expected in zip(both, sink, strict=True):
        np.testing.assert_allclose(patched, expected, atol=1e-4)
    # And the identity says something: these models do feel the first token's look ahead.
    assert max(np.abs(a - b).max() for a, b in zip(sink, plain, strict=True)) > 0.01


def test_the_capture_pass_is_counted() -> None:
    """Every token that the model sees is in the run's cost, the ones run to be patched in too."""
    loaded = tiny_loaded("llama")
    for patch in (None, "both=0", "keys=3", "clip=0"):
        plan = plan_scoring(items(), regime=BIDIRECTIONAL, device=torch.device("cpu"))
        plan = plan.under(BIDIRECTIONAL, parse_patch(patch) if patch else None)
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
    scores = [
        score(loaded, BIDIRECTIONAL, patch) for patch in ("keys=0", "values=0", "both=0", None)
    ]
    for i, score_a in enumerate(scores):
        for score_b in scores[i + 1 :]:
            assert max(np.abs(a - b).max() for a, b in zip(score_a, score_b, strict=True)) > 1e-3
    # A prefix of one token looks at nothing ahead: there is nothing to patch.
    for score_a in scores:
        np.testing.assert_allclose(score_a[0], scores[-1][0], atol=1e-5)


def clipped_by_hand(prefix: np.ndarray, continuation: np.ndarray) -> np.ndarray:
    """One sequence through a plain Llama: the keys as they are, then the first token's norm cut.

    At position 0 rotary embedding turns nothing, so a key is what its projection gives.
    """
    model = tiny_model("llama")
    ids = torch.from_numpy(np.concatenate([prefix, continuation]))[None]
    keys: list[torch.Tensor] = []

    def clip(_, arguments):
        hidden = arguments[0].clone()
        norms = [float(hidden[0, i].norm()) for i in range(len(prefix))]
        middle = sorted(norms[1:])[(len(norms) - 2) // 2]
        hidden[0, 0] *= min(1.0, middle / norms[0])
        return (hidden, *arguments[1:])

    def put_back(_, __, output):
        output[0, 0] = keys[len(put)]
        put.append(True)
        return output

    put: list[bool] = []
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.k_proj.register_forward_hook(
                lambda _, __, o: keys.append(o[0, 0].clone())
            )
        model(input_ids=ids, use_cache=False)
        for layer in model.model.layers:
            layer.self_attn.k_proj._forward_hooks.clear()
            layer.self_attn.k_proj.register_forward_hook(put_back)
            layer.register_forward_pre_hook(clip)
        scores = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    rows = np.arange(len(prefix) - 1, ids.shape[1] - 1)
    return scores[rows, ids[0, rows + 1]].numpy()


@pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])
def test_a_clipped_norm_is_what_hooks_on_the_plain_model_make(padded: bool) -> None:
    loaded = tiny_loaded("llama")
    clipped = score(loaded, CAUSAL, "clip=0", padded=padded)
    plain = score(loaded, CAUSAL, padded=padded)
    differs = []
    for item, ours, unclipped in zip(items(), clipped, plain, strict=True):
        if len(item.prefixes[0]) < 2 or len(item.prefixes) > 1:
            continue
        expected = [clipped_by_hand(item.prefixes[0].ids, c.ids) for c in item.continuations]
        np.testing.assert_allclose(ours, np.concatenate(expected), atol=1e-4)
        differs.append(np.abs(ours - unclipped).max())
    assert max(differs) > 1e-3
    np.testing.assert_allclose(clipped[0], plain[0], atol=1e-5)  # alone, nothing to be clipped to


def test_a_patch_prints_what_it_parses() -> None:
    for text in ("keys=0", "values=3", "both=12", "clip=0", "random=7"):
        assert str(parse_patch(text)) == text
    for text in ("keys", "heads=1", "keys=-1", "both=x", "random=x"):
        with pytest.raises(UserError, match="unknown patch"):
            parse_patch(text)
