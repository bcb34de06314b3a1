"""FlexAttention gives what the dense mask gives, and its rule is the visibility function."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bidir_core.common.errors import UserError
from bidir_core.data.items import Item
from bidir_core.evaluate import scoring
from bidir_core.evaluate.packing import build_segments, collate
from bidir_core.explain.variants import Rule, VariantScorer
from bidir_core.models import attention_flex
from bidir_core.models.attention import choose_implementation
from bidir_core.models.families import FAMILIES, WINDOW, tiny_config, tiny_loaded
from bidir_core.models.layout import Layout, allowed_and_ahead
from bidir_core.models.probe import run_probe
from bidir_core.regimes import CAUSAL, Regime, parse_regime
from tests.tiny_models import logits, logits_in_steps

RICH = "bidirectional:sink=2,rows=0-7,self=4,hide=2,tail=1,layers=0-0,lambda=0.4"
FEW = {"num_hidden_layers": 2}  # uncompiled, each layer takes 40 ms
LENGTHS = ((9, 12), (1, 2), (6, 6), (3, 10))  # (prefix, total)
IDS = torch.randint(0, 256, (1, 30), generator=torch.Generator().manual_seed(0))


# The rule


@st.composite
def regimes(draw: st.DrawFn) -> Regime:
    """A layer's: without ``layers``."""
    span = draw(st.none() | st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted))
    return Regime(
        bidirectional=draw(st.booleans()),
        sink=draw(st.integers(0, 4)),
        rows=None if span is None else tuple(span),  # type: ignore[arg-type]
        skip=draw(st.none() | st.integers(0, 9)),
        self_token=draw(st.none() | st.integers(0, 9)),
        hide=draw(st.none() | st.integers(0, 9)),
        tail=draw(st.integers(0, 4)),
        lam=draw(st.sampled_from([1.0, 0.3])),
    )


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """A packed row of token trees, as evaluation makes it, or padded rows of packed samples."""
    lengths = draw(
        st.lists(
            st.tuples(st.integers(1, 12), st.integers(0, 8)).map(lambda p: (p[0], p[0] + p[1])),
            min_size=1,
            max_size=5,
        )
    )
    if draw(st.booleans()):
        return Layout.pad(lengths, time=max(n for _, n in lengths) + draw(st.integers(0, 3)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    segments = []
    for n_prefix, n_total in lengths:
        choices = [
            rng.integers(0, 3, 1 + n_total - n_prefix) for _ in range(draw(st.integers(1, 3)))
        ]
        segments += build_segments(encoded_item(rng.integers(0, 9, n_prefix), choices))
    return scoring.lengthen(collate(segments, padded=False), draw(st.integers(1, 16))).layout


def encoded_item(prefix: np.ndarray, choices: list[np.ndarray]):
    from bidir_core.data.encoding import EncodedItem, Tokens

    def tokens(ids: np.ndarray) -> Tokens:
        return Tokens(ids.astype(np.int64), np.zeros((len(ids), 2), dtype=np.int64))

    item = Item("t", 0, "h", 0, ("c",), tuple("x" for _ in choices))
    return EncodedItem(item, ("c",), (tokens(prefix),), tuple(map(tokens, choices)))


@settings(max_examples=150, deadline=None)
@given(layouts(), regimes(), st.none() | st.integers(1, 9), st.data())
def test_the_rule_is_the_visibility_function(layout, regime, window, data) -> None:
    time = layout.shape[1]
    n_query = data.draw(st.integers(1, time))
    n_key = data.draw(st.integers(n_query, time))
    allowed, _ = allowed_and_ahead(layout, regime, window, last=n_query)
    batch = torch.arange(layout.shape[0])[:, None, None]
    query, key = torch.arange(n_query)[None, :, None], torch.arange(n_key)[None, None, :]
    visible = attention_flex.pair_rule(layout, regime, window, n_query, n_key)(
        batch, None, query, key
    )
    assert torch.equal(visible, allowed[..., time - n_key :])


@settings(max_examples=60, deadline=None)
@given(layouts(), regimes(), st.none() | st.integers(1, 9), st.sampled_from([1, 300, 1 << 20]))
def test_blocks_hold_exactly_what_is_allowed(layout, regime, window, strip) -> None:
    """Full blocks hold nothing hidden, and what is in no block is hidden."""
    size, time = 4, layout.shape[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_flex, "BLOCK", size)
        patch.setattr(attention_flex, "STRIP_PAIRS", {"cpu": strip})
        mask = attention_flex.make_blocks(layout, regime, window, time, time).mask
    allowed, _ = allowed_and_ahead(layout, regime, window)
    covered, full = torch.zeros_like(allowed), torch.zeros_like(allowed)
    for counts, indices, where in (
        (mask.kv_num_blocks, mask.kv_indices, (covered,)),
        (mask.full_kv_num_blocks, mask.full_kv_indices, (covered, full)),
    ):
        assert counts is not None
        assert indices is not None
        for batch, row in np.ndindex(*counts[:, 0].shape):
            for column in indices[batch, 0, row, : counts[batch, 0, row]].tolist():
                at = slice(row * size, (row + 1) * size), slice(column * size, (column + 1) * size)
                for one in where:
                    assert not one[batch][at].any()
                    one[batch][at] = True
    assert not (allowed & ~covered).any()
    assert not (full & ~allowed).any()


# In models


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_dense_mask(family: str) -> None:
    few = FEW if family not in ("gemma3", "qwen2") else {}  # whose later layers are other ones
    dense, ours = tiny_loaded(family, **few), tiny_loaded(family, implementation="flex", **few)
    packed, padded = Layout.pack(LENGTHS), Layout.pad(LENGTHS)
    for regime, layout, ids in (
        ("bidirectional", packed, IDS),
        (RICH, padded, IDS[:, :12].expand(4, -1)),
    ):
        want = logits(dense, regime, layout, ids)
        torch.testing.assert_close(logits(ours, regime, layout, ids), want, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("family", "regime"),
    [("llama", "bidirectional:lambda=0.1"), ("gemma2", "bidirectional:sink=1")],
)
def test_the_probe_passes(family: str, regime: str) -> None:
    report = run_probe(tiny_loaded(family, implementation="flex", **FEW), regime)
    assert report.passed, report.failures
    assert report.implementation == "flex"


def test_the_probe_tells_a_rule_that_is_one_token_off(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = attention_flex.pair_rule

    def off(layout: Layout, *args):
        return honest(dataclasses.replace(layout, n_prefix=layout.n_prefix + 1), *args)

    monkeypatch.setattr(attention_flex, "pair_rule", off)
    report = run_probe(tiny_loaded(implementation="flex", num_hidden_layers=1), "bidirectional")
    assert {"visible_keys", "continuation_leak"} <= {c.name for c in report.checks if not c.passed}


def test_decoding_with_a_cache() -> None:
    import transformers

    loaded, ids, regime = (
        tiny_loaded("mistral", implementation="flex"),
        IDS[:, :11],
        "bidirectional",
    )
    want = logits(loaded, regime, Layout.pack([(8, 11)]), ids)
    cache = transformers.DynamicCache(config=loaded.model.config)  # crops to the window
    assert WINDOW < 8
    stepwise = logits_in_steps(loaded, regime, 8, (8, 9, 11), ids, cache)
    torch.testing.assert_close(stepwise, want, rtol=0, atol=2e-5)


@pytest.mark.parametrize("regime", ["causal", "bidirectional:sink=1"])
def test_scores_are_those_of_sdpa(regime: str) -> None:
    """Packed rows, lengthened to one of few lengths; every item's scores as they were."""
    from bidir_core.data.encoding import Encoder

    items = [
        Item("t", i, "h", 0, ("what is it? " * (1 + i % 3),), (" no", " not", " yes"))
        for i in range(7)
    ]
    rows = {}
    for implementation in ("sdpa", "flex"):
        loaded = tiny_loaded("qwen2", implementation=implementation)
        plan = scoring.plan_scoring(
            Encoder(loaded.tokenizer).encode(items),
            regime=parse_regime(regime),
            device=loaded.device,
            batch_tokens=128,
            implementation=implementation,
        )
        scorer = scoring.Scorer(loaded.model, loaded.handle, plan)
        scores = [score for batch in plan.batches for score in scorer.score(batch.items)]
        rows[implementation] = [s.ll for s in sorted(scores, key=lambda s: s.index)]
        assert not plan.padded
        if implementation == "flex":
            assert scorer.cost.computed_tokens % plan.row_step == 0
    np.testing.assert_allclose(rows["flex"], rows["sdpa"], atol=1e-4)


def test_a_gpu_evaluates_packed_rows_without_masks_and_padded_ones_with() -> None:
    cuda = torch.device("cuda")
    plans = {
        name: scoring.plan_scoring([], regime=CAUSAL, device=cuda, implementation=name)
        for name in ("sdpa", "eager", "flex", "split")
    }
    padded = [name for name, plan in plans.items() if plan.padded]
    assert padded == ["sdpa", "eager", "split"]  # split: but for long prefixes
    assert plans["flex"].row_step == scoring.AUTO_BATCH_TOKENS["cuda"] // scoring.ROW_LENGTHS


# What it can't do is refused by name


def test_score_sinks_are_refused() -> None:
    with pytest.raises(UserError, match=r"'flex' drops the score sinks of gpt_oss.*--attn eager"):
        choose_implementation(tiny_config("gpt_oss"), "flex")


def test_training_on_a_cpu_is_refused() -> None:
    loaded = tiny_loaded(implementation="flex")
    loaded.model.requires_grad_(True)
    layout = Layout.pack([(3, 5)])
    with (
        pytest.raises(UserError, match="'flex' trains on a CUDA GPU only; use --attn sdpa"),
        loaded.handle.use(CAUSAL, layout),
    ):
        loaded.model(input_ids=IDS[:, :5], position_ids=layout.position)


def test_dropped_attention_weights_are_refused() -> None:
    loaded = tiny_loaded(implementation="flex", attention_dropout=0.1)
    layout = Layout.pack([(3, 5)])
    loaded.model.train()
    with pytest.raises(UserError, match="use --attn sdpa"), torch.no_grad():
        logits(loaded, "causal", layout, IDS[:, :5])


def test_variants_of_one_layer_are_refused() -> None:
    from bidir_core.data.encoding import Encoder

    loaded = tiny_loaded(implementation="flex")
    item = Item("t", 0, "h", 0, ("why?",), (" no", " yes"))
    scorer = VariantScorer(loaded, Encoder(loaded.tokenizer).encode([item])[0])
    with pytest.raises(UserError, match="use --attn sdpa or eager"):
        list(scorer.score([(Rule(CAUSAL),) * loaded.n_layers]))
