"""Log-likelihoods are those of version 06c5902, to the last bit where the machine computes alike.

``recorded_numbers.json`` holds what ``python -m bidir_core eval --limit 4 --dtype float32 --device
cpu --batch-tokens 2048`` gave at that commit, on one thread. Other processors and other versions of
torch round otherwise, and there a small difference is allowed: whether this is one is decided by
transformers alone, which must give the recorded bits of a forward pass without any code of ours.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.lm_eval_peer import LmEvalPeer, accuracy
from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.data.encoding import Encoder
from bidir_core.data.fetch import ensure
from bidir_core.data.tasks import PUBLISHED_TASKS, load_items
from bidir_core.evaluate.config import EvalConfig
from bidir_core.evaluate.evaluate import evaluate
from bidir_core.evaluate.scoring import Scorer, plan_scoring
from bidir_core.models import loading
from bidir_core.regimes import CAUSAL
from bidir_core.runs.run import Run

RECORDED = json.loads((Path(__file__).parent / "recorded_numbers.json").read_text())


def bits_of_a_plain_pass() -> str:
    """sha256 of hidden states and logits of a short and a long text."""
    folder = ensure(EMBEDDED_MODEL)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    digest = hashlib.sha256()
    for n in (37, 400):
        ids = torch.arange(1000, 1000 + n)[None]
        with torch.inference_mode():
            output = model(ids, use_cache=False, output_hidden_states=True)
        digest.update(output.hidden_states[-1].numpy().tobytes() + output.logits.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.assets
def test_numbers_are_those_recorded_before(tmp_path):
    same_machine = bits_of_a_plain_pass() == RECORDED["plain_pass"]
    settings = {"model": EMBEDDED_MODEL, "limit": 4, "batch_tokens": 2048}
    settings |= {"dtype": "float32", "device": "cpu"}
    loaded = loading.load(EMBEDDED_MODEL, dtype="float32", device="cpu")
    for regime, recorded in RECORDED["log_likelihoods"].items():
        config = EvalConfig(**settings, regime=regime, runs_dir=str(tmp_path))
        items = Run(evaluate(config, loaded=loaded)).items(["task", "doc_id", "ll"])
        computed = {f"{row.task}/{row.doc_id}": list(row.ll) for row in items.itertuples()}
        if same_machine:
            assert computed == recorded
        assert list(computed) == list(recorded)
        for item, ll in computed.items():
            np.testing.assert_allclose(ll, recorded[item], atol=1e-3, rtol=1e-5)


# Causal scores are lm-eval's: its own ``hf`` model on the same items, choice by choice


@pytest.mark.assets
def test_equals_lm_eval_choice_by_choice():
    items = load_items(PUBLISHED_TASKS, limit=3, sample="stratified")
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
