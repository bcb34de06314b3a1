"""Whether scoring an item again gives the same numbers, bit for bit.

    python -m benchmarks.repeat_scoring --seconds 60

One process scores one item of the embedded model (causal, float32) over and over, with other memory
taken in between, and counts the different results.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter

import torch

from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.data.tasks import load_items_by_id
from bidir_core.evaluate import evaluate
from bidir_core.evaluate.config import EvalConfig
from bidir_core.evaluate.scoring import Scorer, plan_scoring
from bidir_core.models import loading
from bidir_core.regimes import CAUSAL

KEPT = 20  # blocks of memory held at a time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--task", default="hellaswag")
    parser.add_argument("--doc-id", type=int, default=117)
    options = parser.parse_args()
    config = EvalConfig(model=EMBEDDED_MODEL, tasks=(options.task,), dtype="float32", device="cpu")
    plan = evaluate.preflight(config, CAUSAL)
    items = load_items_by_id(options.task, [options.doc_id], split="validation", data_source="auto")
    encoded, _ = evaluate.encode(config, plan, items)
    loaded = loading.load_weights(plan)
    found: Counter[tuple[float, ...]] = Counter()
    held: list[torch.Tensor] = []
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        held = [*held[-KEPT:], torch.empty(random.randrange(1, 200_000))]
        scoring = plan_scoring(encoded, regime=CAUSAL, device=loaded.device)
        (score,) = Scorer(loaded.model, loaded.handle, scoring).score([0])
        found[tuple(score.ll)] += 1
    (usual, _), *_ = found.most_common(1)
    print(
        f"{sum(found.values())} scorings of {items[0].item_id}, {torch.get_num_threads()} threads"
    )
    for values, times in found.most_common():
        off = max(abs(a - b) for a, b in zip(values, usual, strict=True))
        print(f"{times:6d} times {off:.2g} nats from the usual result")


if __name__ == "__main__":
    main()
