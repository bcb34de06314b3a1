"""Log-likelihoods are those of version 06c5902, to the last bit where the machine computes alike.

``recorded_numbers.json`` holds what ``python -m bidir_core eval --limit 4 --dtype float32 --device
cpu --batch-tokens 2048`` gave at that commit, on one thread. Other processors and other versions of
torch round otherwise, and there a small difference is allowed: whether this is one is decided by
transformers alone, which must give the recorded bits of a forward pass without any code of ours.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.data.fetch import ensure
from bidir_core.evaluate.config import EvalConfig
from bidir_core.evaluate.evaluate import evaluate
from bidir_core.models import loading
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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
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
    finally:
        torch.set_num_threads(threads)
