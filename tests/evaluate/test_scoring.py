"""Scoring against a slow reference: every choice alone, in its own sequence, one forward pass."""

import contextlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MistralConfig

from bidir_core.common.errors import UserError
from bidir_core.data.encoding import EncodedItem, Tokens
from bidir_core.data.items import Item
from bidir_core.evaluate import scoring
from bidir_core.evaluate.packing import (
    ATTENTION_EVENS_AT,
    _best_fit,
    build_segments,
    collate,
    grow,
    pack_rows,
    plan_batches,
)
from bidir_core.evaluate.scoring import MOST_WAITING, Scorer, plan_scoring
from bidir_core.models.attention import choose_implementation, install
from bidir_core.models.layout import Layout
from bidir_core.regimes import parse_regime

VOCAB = 24
SMALL = {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 48, "vocab_size": VOCAB}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2}
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "mistral with a window": MistralConfig(**SMALL, sliding_window=6),
    "gemma2": Gemma2Config(**SMALL, head_dim=8, sliding_window=5),
}
REGIMES = [
    "causal",
    "bidirectional",
    "bidirectional:sink=1,lambda=0.2",
    "bidirectional:self=2,tail=1,layers=1-2",
    "causal:hide=1,layers=1-",
    "bidirectional:hide=2,sink=1,layers=1-,lambda=0.5",
]


def make_model(name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    return model, install(model, choose_implementation(CONFIGS[name]))


def make_item(doc_id, prefixes, continuations):
    item = Item("made", doc_id, str(doc_id), 0, ("c",) * len(prefixes), ("d",) * len(continuations))

    def tokens(ids):
        return Tokens(np.array(ids, dtype=np.int64), np.zeros((len(ids), 2), dtype=np.int64))

    return EncodedItem(
        item,
        item.contexts,
        tuple(tokens(ids) for ids in prefixes),
        tuple(tokens(ids) for ids in continuations),
    )


ids = st.lists(st.integers(1, 4), min_size=1, max_size=7)  # few tokens: choices often overlap


@st.composite
def items(draw):
    """Items with shared beginnings, choices that extend others, and per-choice contexts."""
    encoded = []
    for doc_id in range(draw(st.integers(1, 5))):
        continuations = draw(st.lists(ids, min_size=2, max_size=5))
        n_contexts = draw(st.sampled_from([1, len(continuations)]))
        prefixes = [
            draw(st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=9))
            for _ in range(n_contexts)
        ]
        encoded.append(make_item(doc_id, prefixes, continuations))
    return encoded


@torch.no_grad()
def reference(model, handle, regime, encoded):
    """Per item and choice the token log-likelihoods, from one plain sequence per choice."""
    scores = []
    for item in encoded:
        rows = []
        for choice, continuation in enumerate(item.continuations):
            prefix = item.prefix(choice).ids
            sequence = torch.from_numpy(np.concatenate([prefix, continuation.ids]))[None]
            layout = Layout.pack([(len(prefix), sequence.shape[1])])
            with handle.use(regime, layout):
                logits = model(
                    input_ids=sequence, position_ids=layout.position, use_cache=False
                ).logits[0]
            ll = logits.double().log_softmax(-1)[len(prefix) - 1 : -1]
            rows.append(ll.gather(1, sequence[0, len(prefix) :, None])[:, 0].numpy())
        scores.append(rows)
    return scores


def score(model, handle, regime, encoded, *, padded, batch_tokens):
    cpu = torch.device("cpu")
    plan = plan_scoring(encoded, regime=regime, device=cpu, batch_tokens=batch_tokens)
    batches = plan_batches(plan.segments, batch_tokens)
    plan = replace(plan, batches=batches, padded=padded)
    scorer = Scorer(model, handle, plan)
    scores = {s.index: s.token_ll for batch in batches for s in scorer.score(batch.items)}
    return [scores[i] for i in range(len(encoded))], scorer


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("text", REGIMES)
def test_equals_one_choice_at_a_time(name, text):
    model, handle = make_model(name)
    regime = parse_regime(text)

    @settings(max_examples=10)
    @given(items(), st.booleans(), st.sampled_from([1, 20, 60, 1000]))
    def check(encoded, padded, batch_tokens):
        got, _ = score(model, handle, regime, encoded, padded=padded, batch_tokens=batch_tokens)
        for ours, theirs in zip(got, reference(model, handle, regime, encoded)):
            for choice_ll, expected in zip(ours, theirs):
                np.testing.assert_allclose(choice_ll, expected, atol=2e-5)

    check()


@given(items(), st.booleans(), st.integers(1, 80))
def test_batches_hold_every_item_once_within_budget(encoded, padded, budget):
    segments = [build_segments(item) for item in encoded]
    batches = plan_batches(segments, budget)
    assert sorted(i for batch in batches for i in batch.items) == list(range(len(encoded)))
    for batch in batches:
        batch_segments = [s for i in batch.items for s in segments[i]]
        tokens = sum(map(len, batch_segments))
        assert tokens <= budget or len(batch.items) == 1
        collated = collate(batch_segments, padded=padded)
        assert int((collated.layout.item >= 0).sum()) == tokens
        rows, width = collated.ids.shape
        if padded:  # at most one row is less than half full
            assert width % 8 == 0
            assert rows * width < 2 * tokens + 2 * (max(map(len, batch_segments)) + 8)
        else:
            assert (rows, width) == (1, tokens)


@given(items(), st.booleans())
@settings(max_examples=120)
def test_trees_grown_together_are_those_grown_alone(encoded, causal):
    """And those of a plain trie: a token's subtree is all that begins as its path does."""
    segments = [s for item in encoded for s in build_segments(item, causal=causal)]
    forest, start, head = grow(segments), 0, 0
    for segment in segments:
        end, ends = start + len(segment), head + sum(segment.scored)
        tree = grow([segment])
        assert forest.ids[start:end].tolist() == tree.ids.tolist()
        assert forest.position[start:end].tolist() == tree.position.tolist()
        assert (forest.exit[start:end] - start).tolist() == tree.exit.tolist()
        assert (forest.heads[head:ends] - start).tolist() == tree.heads.tolist()
        heads = np.split(tree.heads, np.cumsum(segment.scored)[:-1])
        # a node for each distinct beginning of a choice, in order of first appearance
        node: dict[tuple[int, ...], int] = {}
        for text, n_scored, choice_heads in zip(segment.texts, segment.scored, heads):
            path = [segment.n_prefix - 1]
            for n in range(1, len(text)):
                beginning = tuple(text[:n].tolist())
                path.append(node.setdefault(beginning, segment.n_prefix + len(node)))
            assert choice_heads.tolist() == path[len(text) - n_scored :]
        assert len(segment) == segment.n_prefix + len(node)
        assert set(tree.exit[: segment.n_prefix].tolist()) == {len(segment)}
        for beginning, index in node.items():
            below = [i for other, i in node.items() if other[: len(beginning)] == beginning]
            assert tree.exit[index] == max(below) + 1
            assert tree.ids[index] == beginning[-1]
            assert tree.position[index] == segment.n_prefix + len(beginning) - 1
        start, head = end, ends
    assert (start, head) == (len(forest.ids), len(forest.heads))


@given(st.lists(st.integers(1, 200), min_size=1, max_size=60))
def test_the_rows_width_is_the_cheapest_of_all(lengths):
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    longest = math.ceil(max(lengths) / 8) * 8
    packings = [(w, _best_fit(lengths, order, w)) for w in range(longest, 2 * longest + 1, 8)]
    assert pack_rows(lengths) == min(
        packings,
        key=lambda packing: len(packing[1]) * packing[0] * (ATTENTION_EVENS_AT + packing[0]),
    )


def test_out_of_memory_halves_the_batch_and_goes_on(monkeypatch):
    model, handle = make_model("llama")
    encoded = [make_item(i, [[1 + i, 2, 3]], [[4, 5], [6]]) for i in range(8)]
    causal = {"regime": parse_regime("causal"), "padded": False, "batch_tokens": 999}
    want, _ = score(model, handle, encoded=encoded, **causal)
    run = Scorer._token_ll
    sizes = []

    def small_memory(self, batch):
        sizes.append(batch.ids.numel())
        if batch.ids.numel() > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, batch)

    monkeypatch.setattr(Scorer, "_token_ll", small_memory)
    got, scorer = score(model, handle, encoded=encoded, **causal)
    assert sizes == [32, 16, 8, 8, 16, 8, 8]
    assert scorer.cost.out_of_memory == 3
    for ours, theirs in zip(got, want):
        for choice_ll, other in zip(ours, theirs):
            np.testing.assert_allclose(choice_ll, other, atol=1e-6)


@pytest.mark.parametrize(
    ("error", "raised", "says"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), UserError, "item made/0 alone"),
        (RuntimeError("shape mismatch"), RuntimeError, "shape mismatch"),
    ],
)
def test_an_item_too_large_for_memory_is_named_and_other_errors_stay(
    monkeypatch, error, raised, says
):
    def broken(self, batch):
        raise error

    monkeypatch.setattr(Scorer, "_token_ll", broken)
    items = [make_item(0, [[1]], [[2], [3]])]
    with pytest.raises(raised, match=says):
        score(*make_model("llama"), parse_regime("causal"), items, padded=False, batch_tokens=99)


@pytest.fixture
def on_gpu(monkeypatch):
    """A scorer that believes it has a GPU, and what happens to it, in order."""
    events = []

    class Nowhere:
        def __init__(self, device):
            events.append("ready")

        @contextlib.contextmanager
        def stream(self):
            events.append("aside")
            yield
            events.append("back")

    class OnGpu(Scorer):
        def __init__(self, unable=(), error=None):
            self.device, self.unable = torch.device("cuda"), unable
            self.error = error or UserError("out of memory")

        def begin(self, items):
            events.append(("begin", *items))
            if items[0] in self.unable:
                raise self.error
            return lambda: events.append(("read", *items)) or []

        def record_all(self, n, meanwhile=None):
            for items, _ in self.score_all([[i] for i in range(n)], meanwhile):
                events.append(("record", *items))

    monkeypatch.setattr(scoring, "Beside", Nowhere)
    return OnGpu, events


def test_a_gpu_is_some_batches_ahead_and_what_it_computed_is_not_lost(on_gpu):
    scorer, events = on_gpu
    n = MOST_WAITING + 1
    with pytest.raises(UserError):
        scorer(unable=[n]).record_all(n + 2)
    first = ["ready", *(("begin", i) for i in range(n)), ("read", 0), ("record", 0), ("begin", n)]
    assert events == first + [(what, i) for i in range(1, n) for what in ("read", "record")]


def test_a_gpu_computes_while_the_probe_asks_and_nothing_is_recorded_before(on_gpu):
    scorer, events = on_gpu
    scorer().record_all(2, lambda: events.append("probe"))
    begun = ["ready", ("begin", 0), ("begin", 1)]
    asked = ["aside", "probe", "back"]
    recorded = [("read", 0), ("record", 0), ("read", 1), ("record", 1)]
    assert events == begun + asked + recorded
    events.clear()

    def failed():
        raise UserError("the mask probe failed")

    with pytest.raises(UserError, match="probe"):
        scorer().record_all(2, failed)
    assert events == [*begun, "aside"]
    events.clear()
    scorer().record_all(0, lambda: events.append("probe"))
    assert "probe" in events  # nothing left to score: asked all the same


@pytest.mark.parametrize(
    ("unable", "error"), [(0, UserError("out of memory")), (1, KeyboardInterrupt("terminated"))]
)
def test_the_probe_is_not_asked_for_nothing_or_after_a_signal(on_gpu, unable, error):
    scorer, events = on_gpu
    with pytest.raises(type(error)):
        scorer([unable], error).record_all(3, lambda: events.append("probe"))
    assert events == ["ready", *(("begin", i) for i in range(unable + 1))]


@given(items(), st.integers(8, 200))
def test_the_first_and_the_last_batches_of_a_ramp_are_small(encoded, budget):
    segments = [build_segments(item) for item in encoded]
    sizes = [sum(map(len, item_segments)) for item_segments in segments]
    plain, ramp = plan_batches(segments, budget), plan_batches(segments, budget, ramp=True)
    assert [i for b in ramp for i in b.items] == [i for b in plain for i in b.items]
    for number, batch in enumerate(ramp):
        tokens = sum(sizes[i] for i in batch.items)
        assert tokens <= budget >> max(0, 2 - number) or len(batch.items) == 1
    longest = max(sizes, default=0)
    assert not ramp or sum(sizes[i] for i in ramp[-1].items) <= 1.5 * (budget // 4) + longest
