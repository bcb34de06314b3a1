"""Causal scores are lm-eval's: its own ``hf`` model on the same items, choice by choice."""

from __future__ import annotations

import pytest
import torch

from benchmarks.lm_eval_peer import LmEvalPeer, accuracy
from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.data.encoding import Encoder
from bidir_core.data.fetch import ensure
from bidir_core.data.tasks import PUBLISHED_TASKS, load_items
from bidir_core.evaluate.scoring import Scorer, plan_scoring
from bidir_core.models import loading
from bidir_core.regimes import CAUSAL


@pytest.mark.assets
def test_equals_lm_eval_choice_by_choice():
    items = load_items(PUBLISHED_TASKS, limit=5, sample="stratified")
    loaded = loading.load(EMBEDDED_MODEL, dtype="float32", device="cpu")
    encoded = Encoder(loaded.tokenizer).encode(items)
    plan = plan_scoring(encoded, regime=CAUSAL, device=torch.device("cpu"))
    scorer = Scorer(loaded.model, loaded.handle, plan)
    by_index = {s.index: s.ll for batch in plan.batches for s in scorer.score(batch.items)}
    ours = [by_index[i] for i in range(len(items))]
    theirs = LmEvalPeer(str(ensure(EMBEDDED_MODEL))).score(items, batch_size=4)
    for item, scores, reference in zip(encoded, ours, theirs):
        for tokens, a, b in zip(item.continuations, scores, reference):
            assert abs(a - b) <= 1e-3 + 1e-5 * len(tokens), item.item.item_id
    assert accuracy(items, ours) == accuracy(items, theirs)
