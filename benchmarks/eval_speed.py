"""Evaluation speed beside lm-eval's, on the same items, in one run.

    python -m benchmarks.eval_speed                        # five tasks x 20 items, float32, CPU
    python -m benchmarks.eval_speed --limit 500 --device cuda --dtype bfloat16 --batch-sizes 64,256
    python -m benchmarks.eval_speed --limit 100 --sample stratified --repeats 0 --batch-sizes 8

Times tokenising and scoring, model loading left out. Repeats of both are interleaved, since other
work on the machine can slow any one of them; medians are printed, with CPU seconds. Whether the scores
are lm-eval's, choice by choice, is told by task.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.lm_eval_peer import LmEvalPeer, accuracy, our_scores
from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.data.encoding import EncodedItem, Encoder
from bidir_core.data.fetch import ensure
from bidir_core.data.items import Item
from bidir_core.data.tasks import PUBLISHED_TASKS, load_items
from bidir_core.models import fused, loading

Scores = Sequence[Sequence[float]]  # nats, by item and choice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--limit", type=int, default=20, help="items per task")
    parser.add_argument("--sample", default="first", help="or stratified, over each split")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-sizes", default="1,4,8,16", help="lm-eval's; the best is used")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()

    folder = ensure(EMBEDDED_MODEL)
    items = load_items(PUBLISHED_TASKS, limit=options.limit, sample=options.sample)
    loaded = loading.load(EMBEDDED_MODEL, dtype=options.dtype, device=options.device)
    peer = LmEvalPeer(str(folder), dtype=options.dtype, device=options.device)

    def encode() -> list[EncodedItem]:
        return Encoder(loaded.tokenizer).encode(items)

    def ours() -> list[list[float]]:
        return our_scores(loaded, encode())

    print(
        f"{len(items)} items of {len(PUBLISHED_TASKS)} tasks, {options.dtype} on {options.device}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    our_result = ours()  # a warm-up, too
    sizes = [int(size) for size in options.batch_sizes.split(",")]

    def theirs_at(size: int) -> list[list[float]]:
        with fused.plain(loaded.model):  # rotary embeddings are shared by a family's models
            return peer.score(items, size)

    first = {size: timed(lambda size=size: theirs_at(size)) for size in sizes}
    for size, trial in first.items():
        print(f"lm-eval, batch {size:4d}: {trial['wall']:7.2f} s")
    best = min(first, key=lambda size: first[size]["wall"])
    compare(items, encode(), our_result, first[best]["result"])
    if not options.repeats:
        return

    runs: dict[str, list[dict[str, Any]]] = {"bidir": [], "lm-eval": []}
    for _ in range(options.repeats):
        runs["bidir"].append(timed(ours))
        runs["lm-eval"].append(timed(lambda: theirs_at(best)))
    for name, trials in runs.items():
        print(
            f"{name:8s} wall {median(trials, 'wall'):7.2f} s   cpu {median(trials, 'cpu'):7.2f} s   "
            f"(wall of each: {', '.join(format(t['wall'], '.2f') for t in trials)})"
        )
    ratios = [b["wall"] / a["wall"] for a, b in zip(runs["bidir"], runs["lm-eval"])]
    cpu_ratio = median(runs["lm-eval"], "cpu") / median(runs["bidir"], "cpu")
    print(
        f"lm-eval at its best batch size ({best}) takes {statistics.median(ratios):.2f} times as "
        f"long (median of paired repeats); {cpu_ratio:.2f} times the CPU seconds"
    )


def compare(
    items: Sequence[Item], encoded: Sequence[EncodedItem], ours: Scores, theirs: Scores
) -> None:
    """By task: the largest difference of a choice, its share of what float32 may differ by, and
    whether accuracies are equal."""
    our_accuracy, reference = accuracy(items, ours), accuracy(items, theirs)
    for task in our_accuracy:
        gaps = [
            (abs(a - b), abs(a - b) / (1e-3 + 1e-5 * len(tokens)))
            for item, code, x, y in zip(items, encoded, ours, theirs)
            if item.task == task
            for a, b, tokens in zip(x, y, code.continuations)
        ]
        equal = our_accuracy[task] == reference[task]
        print(
            f"{task:14s} choices={len(gaps):5d}  largest difference {max(gaps)[0]:.2e} nats, "
            f"{max(share for _, share in gaps):.2f} of the tolerance  "
            f"acc, acc_norm {'equal' if equal else 'DIFFER'}"
        )


def timed(work: Any) -> dict[str, Any]:
    """Wall and CPU seconds of ``work()``, and what it gave."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "result": result,
    }


def median(trials: list[dict[str, Any]], key: str) -> float:
    return statistics.median(trial[key] for trial in trials)


if __name__ == "__main__":
    main()
