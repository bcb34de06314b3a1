"""Are causal scores lm-eval's, choice by choice? Both score the same items once, in float32.

python -m benchmarks.parity --limit 100
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.lm_eval_peer import LmEvalPeer, accuracy, our_scores
from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.data.encoding import Encoder
from bidir_core.data.fetch import ensure
from bidir_core.data.tasks import PUBLISHED_TASKS, load_items
from bidir_core.models import loading


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--limit", type=int, default=100, help="items per task")
    parser.add_argument("--sample", default="stratified")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=8, help="lm-eval's")
    options = parser.parse_args()

    items = load_items(PUBLISHED_TASKS, limit=options.limit, sample=options.sample)
    loaded = loading.load(EMBEDDED_MODEL, dtype="float32", device=options.device)
    encoded = Encoder(loaded.tokenizer).encode(items)
    ours = our_scores(loaded, encoded)
    peer = LmEvalPeer(str(ensure(EMBEDDED_MODEL)), device=options.device)
    theirs = peer.score(items, options.batch_size)
    our_accuracy, reference = accuracy(items, ours), accuracy(items, theirs)

    print(f"float32 on {options.device}, torch {torch.__version__}; differences in nats")
    for task in PUBLISHED_TASKS:
        rows = [i for i, item in enumerate(items) if item.task == task]
        gaps = [
            (abs(a - b), abs(a - b) / (1e-3 + 1e-5 * len(tokens)))
            for i in rows
            for a, b, tokens in zip(ours[i], theirs[i], encoded[i].continuations)
        ]
        equal = our_accuracy[task] == reference[task]
        print(
            f"{task:14s} n={len(rows):4d} choices={len(gaps):5d}  largest {max(gaps)[0]:.2e}  "
            f"of the tolerance {max(share for _, share in gaps):.2f}  "
            f"acc, acc_norm {'equal' if equal else 'DIFFER'}"
        )


if __name__ == "__main__":
    main()
